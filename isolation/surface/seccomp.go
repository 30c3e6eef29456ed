package surface

// Mode is the seccomp mode of a thread as /proc/PID/status shows it.
type Mode uint8

const (
	ModeOff    Mode = 0
	ModeStrict Mode = 1
	ModeFilter Mode = 2
)

func (m Mode) String() string {
	switch m {
	case ModeOff:
		return "off"
	case ModeStrict:
		return "strict"
	case ModeFilter:
		return "filter"
	}
	return "unknown"
}

// Seccomp is what the seccomp filters of a process leave open.
type Seccomp struct {
	// Mode is the weakest of all threads: off if one of them has no filter.
	Mode Mode
	// Threads is how many threads were looked at, Filters the number of
	// filters on the thread that has the fewest.
	Threads, Filters int
	// Reachable counts the native system calls that some thread can make with
	// some arguments, of Total that the architecture has; ByArgument those of
	// Reachable that are refused for other arguments.
	Reachable, Total, ByArgument int
	// Foreign counts calls reachable by another ABI of the machine (i386 and
	// x32 on amd64), which a filter should shut altogether.
	Foreign int
	// Calls names what is reachable, in order of number.
	Calls []string
}

// thread is the seccomp state of one thread.
type thread struct {
	mode    Mode
	filters []Program
}

// Evaluate says what a process whose only thread has these filters can reach
// on the machine that this program was built for. No filter means that
// everything is reachable. It fails on a program that no kernel would take.
func Evaluate(filters ...Program) (Seccomp, error) {
	t := thread{mode: ModeOff, filters: filters}
	if len(filters) > 0 {
		t.mode = ModeFilter
	}
	return evaluate(local, []thread{t})
}

// strictCalls are what SECCOMP_MODE_STRICT leaves: read, write, exit,
// rt_sigreturn.
var strictCalls = map[string]bool{"read": true, "write": true, "exit": true, "rt_sigreturn": true}

func evaluate(m machine, threads []thread) (Seccomp, error) {
	out := Seccomp{Threads: len(threads), Total: len(m.numbers)}
	sets := distinct(threads)
	for _, t := range sets {
		for _, f := range t.filters {
			if err := f.Validate(); err != nil {
				return Seccomp{}, err
			}
		}
	}
	for i, t := range threads {
		if i == 0 || weaker(t.mode, out.Mode) {
			out.Mode = t.mode
		}
		if i == 0 || len(t.filters) < out.Filters {
			out.Filters = len(t.filters)
		}
	}
	for _, nr := range m.numbers {
		var v verdict
		for _, t := range sets {
			v |= t.verdict(nr, m.native, m.calls[nr])
		}
		if v&mayLet != 0 {
			out.Reachable++
			out.Calls = append(out.Calls, m.calls[nr])
			if v&mayRefuse != 0 {
				out.ByArgument++
			}
		}
	}
	for _, other := range m.foreign {
		for nr := range uint32(foreignCalls) {
			for _, t := range sets {
				if t.verdict(nr|other.bit, other, "")&mayLet != 0 {
					out.Foreign++
					break
				}
			}
		}
	}
	return out, nil
}

// verdict is that of one thread; name is the call's native name, empty for
// another ABI.
func (t thread) verdict(nr uint32, a abi, name string) verdict {
	switch t.mode {
	case ModeOff:
		return mayLet
	case ModeStrict:
		if strictCalls[name] {
			return mayLet
		}
		return mayRefuse
	}
	return together(t.filters, nr, a.arch)
}

// weaker orders modes by what they leave open.
func weaker(a, b Mode) bool {
	rank := func(m Mode) int {
		switch m {
		case ModeOff:
			return 0
		case ModeFilter:
			return 1
		}
		return 2
	}
	return rank(a) < rank(b)
}

// distinct drops threads whose filters equal another's, since a process's
// threads nearly always share theirs.
func distinct(threads []thread) []thread {
	seen := map[string]bool{}
	var out []thread
	for _, t := range threads {
		key := string(rune(t.mode))
		for _, f := range t.filters {
			key += f.key() + "|"
		}
		if !seen[key] {
			seen[key] = true
			out = append(out, t)
		}
	}
	return out
}

func (p Program) key() string {
	b := make([]byte, 0, 8*len(p))
	for _, in := range p {
		b = append(b, byte(in.Code), byte(in.Code>>8), in.JT, in.JF,
			byte(in.K), byte(in.K>>8), byte(in.K>>16), byte(in.K>>24))
	}
	return string(b)
}
