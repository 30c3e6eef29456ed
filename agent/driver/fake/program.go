package fake

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program of the fake: a few words of shell, as many as tests
// need. It knows echo, exit, sleep, trap, true, cat, ":", exec, a counter,
// "while true; do …; done", and "tail /dev/zero", which takes all memory.
type process struct {
	init   bool // as pid 1, a signal without a trap does nothing to it
	memory int64
	in     io.Reader
	out    io.Writer
	errout io.Writer
	traps  map[string]string
	vars   map[string]int

	signals chan string
	kill    context.CancelFunc
	killed  context.Context

	mu     sync.Mutex
	paused chan struct{} // open while paused
	busy   time.Time     // since when it spins
}

// ended is how a program leaves; it travels as a panic within run.
type ended struct {
	code int
	oom  bool
}

func newProcess(in io.Reader, out, errout io.Writer) *process {
	p := &process{in: in, out: out, errout: errout, traps: map[string]string{}, vars: map[string]int{}, signals: make(chan string, 16)}
	p.killed, p.kill = context.WithCancel(context.Background())
	return p
}

// run runs args to their end.
func (p *process) run(args []string) (code int, oom bool) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case ended:
			code, oom = r.code, r.oom
		default:
			panic(r)
		}
	}()
	if len(args) == 3 && args[0] == "sh" && args[1] == "-c" {
		p.script(args[2])
	} else {
		p.command(args)
	}
	return 0, false
}

func (p *process) script(text string) {
	for rest := text; strings.TrimSpace(rest) != ""; {
		rest = strings.TrimSpace(rest)
		if after, ok := strings.CutPrefix(rest, "while true; do "); ok {
			body, _, ok := strings.Cut(after, "done")
			if !ok {
				p.fail("while without done")
			}
			for { // nothing follows an endless loop
				p.script(body)
			}
		}
		var line string
		line, rest = cutStatement(rest)
		p.command(words(line))
	}
}

// cutStatement cuts at the first semicolon outside of quotes.
func cutStatement(s string) (string, string) {
	quoted := false
	for i, r := range s {
		switch {
		case r == '\'':
			quoted = !quoted
		case r == ';' && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func words(line string) []string {
	var out []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '\'' {
			word, after, _ := strings.Cut(line[1:], "'")
			out, line = append(out, word), after
			continue
		}
		word, after, _ := strings.Cut(line, " ")
		out, line = append(out, word), after
	}
	return out
}

func (p *process) command(args []string) {
	p.checkpoint()
	if len(args) == 0 {
		return
	}
	if name, value, ok := strings.Cut(args[0], "="); ok {
		if n, err := strconv.Atoi(value); err == nil {
			p.vars[name] = n
		} else if value == "$(("+name+"+1))" {
			p.vars[name]++
		} else {
			p.fail("the fake does not know the value " + value)
		}
		return
	}
	switch args[0] {
	case "true":
	case ":":
		p.spin()
	case "exec":
		p.command(args[1:])
		panic(ended{})
	case "echo":
		to := p.out
		if n := len(args); args[n-1] == ">&2" {
			args, to = args[:n-1], p.errout
		}
		text := strings.Join(args[1:], " ")
		for name, n := range p.vars {
			text = strings.ReplaceAll(text, "$"+name, strconv.Itoa(n))
		}
		fmt.Fprintln(to, text)
	case "exit":
		code, err := strconv.Atoi(args[1])
		if err != nil {
			p.fail(err.Error())
		}
		panic(ended{code: code})
	case "sleep":
		seconds, err := strconv.ParseFloat(args[1], 64)
		if err != nil {
			p.fail(err.Error())
		}
		p.sleep(time.Duration(seconds * float64(time.Second)))
	case "trap":
		p.traps["SIG"+args[2]] = args[1]
	case "cat":
		if p.in != nil {
			_, _ = io.Copy(p.out, p.in)
		}
	case "tail":
		if p.memory > 0 {
			panic(ended{code: 137, oom: true})
		}
		p.sleep(time.Hour)
	default:
		p.fail("the fake does not know the command " + args[0])
	}
}

func (p *process) fail(why string) {
	fmt.Fprintln(p.errout, why)
	panic(ended{code: 127})
}

// checkpoint is where signals and pauses take effect.
func (p *process) checkpoint() {
	for {
		p.mu.Lock()
		paused := p.paused
		p.mu.Unlock()
		if paused != nil {
			select {
			case <-paused:
				continue
			case <-p.killed.Done():
			}
		}
		select {
		case <-p.killed.Done():
			panic(ended{code: 137})
		case name := <-p.signals:
			p.deliver(name)
		default:
			return
		}
	}
}

func (p *process) deliver(name string) {
	if trap, ok := p.traps[name]; ok {
		p.script(trap)
		return
	}
	if !p.init {
		panic(ended{code: 128 + int(signalOf(name))})
	}
}

func (p *process) sleep(d time.Duration) {
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		select {
		case <-end.C:
			p.checkpoint()
			return
		case <-p.killed.Done():
			panic(ended{code: 137})
		case name := <-p.signals:
			p.signals <- name // in its turn, once it is not paused
			p.checkpoint()
		}
	}
}

// spin counts as using the processor.
func (p *process) spin() {
	p.mu.Lock()
	if p.busy.IsZero() {
		p.busy = time.Now()
	}
	p.mu.Unlock()
	p.sleep(10 * time.Millisecond)
}

func (p *process) cpu() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy.IsZero() {
		return 0
	}
	return time.Since(p.busy)
}

func (p *process) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused == nil {
		p.paused = make(chan struct{})
	}
}

func (p *process) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused != nil {
		close(p.paused)
		p.paused = nil
	}
}

func (p *process) signal(name string) {
	if name == "SIGKILL" {
		p.kill()
		return
	}
	select {
	case p.signals <- name:
	default: // a process that does not look at 16 of them loses more
	}
}

func signalOf(name string) syscall.Signal { return unix.SignalNum(name) }
