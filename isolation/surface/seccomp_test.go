package surface

import (
	"slices"
	"testing"
)

func number(t *testing.T, name string) uint32 {
	t.Helper()
	for nr, n := range local.calls {
		if n == name {
			return nr
		}
	}
	t.Skipf("this architecture has no %s", name)
	return 0
}

func TestEvaluateCounts(t *testing.T) {
	total := len(local.numbers)
	if total < 300 {
		t.Fatalf("only %d system calls known", total)
	}
	socket, read, write := number(t, "socket"), number(t, "read"), number(t, "write")
	spin := Program{}
	for i := range 200 { // more states at one place than are followed singly
		spin = append(spin, ldArg(0, 0), jeq(uint32(i), 0, 1), Insn{Code: classST, K: uint32(i % memWords)})
	}
	spin = append(spin, ldNr(), jeq(read, 0, 1), ret(ActionAllow), ret(ActionKillProcess))
	tests := []struct {
		name                       string
		filters                    []Program
		reachable, byArg, nFilters int
		foreign                    bool
	}{
		{"no filter", nil, total, 0, 0, true},
		{"allow list", []Program{allowOnly(read, write)}, 2, 0, 1, false},
		{"deny list leaves the other ABIs open", []Program{refuse(read, write)}, total - 2, 0, 1, true},
		{"by argument", []Program{onlyWithArg0(socket, 1)}, total, 1, 1, true},
		{"the strictest of two", []Program{allowOnly(read, write, socket), refuse(write)}, 2, 0, 2, false},
		{"both conditions", []Program{allowOnly(read, socket), onlyWithArg0(socket, 1)}, 2, 1, 2, false},
		{"log lets through", []Program{{ret(ActionLog)}}, total, 0, 1, true},
		{"a supervisor may let through", []Program{{ret(ActionUserNotify)}}, total, 0, 1, true},
		{"a trap does not", []Program{{ret(ActionTrap)}}, 0, 0, 1, false},
		{"an unknown action does not", []Program{{ret(0x7fff0000 - 0x10000*8)}}, 0, 0, 1, false},
		{"errno does not", []Program{{ret(ActionErrno)}}, 0, 0, 1, false},
		{"very many states", []Program{spin}, 1, 0, 1, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Evaluate(tt.filters...)
			if err != nil {
				t.Fatal(err)
			}
			if got.Reachable != tt.reachable || got.ByArgument != tt.byArg || got.Filters != tt.nFilters ||
				got.Total != total || len(got.Calls) != got.Reachable || (got.Foreign > 0) != tt.foreign {
				got.Calls = nil
				t.Errorf("got %+v, want reachable %d, by argument %d, filters %d, foreign %v",
					got, tt.reachable, tt.byArg, tt.nFilters, tt.foreign)
			}
		})
	}
	if _, err := Evaluate(Program{ldNr()}); err == nil {
		t.Error("a program without a return was accepted")
	}
}

func TestTheWeakestThreadCounts(t *testing.T) {
	read, write := number(t, "read"), number(t, "write")
	strict := thread{mode: ModeFilter, filters: []Program{allowOnly(read), allowOnly(read)}}
	loose := thread{mode: ModeFilter, filters: []Program{allowOnly(read, write)}}
	got, err := evaluate(local, []thread{strict, loose, strict})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"read", "write"}; !slices.Equal(got.Calls, want) || got.Filters != 1 || got.Threads != 3 {
		t.Errorf("got %+v", got)
	}
	got, err = evaluate(local, []thread{strict, {mode: ModeOff}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode != ModeOff || got.Reachable != got.Total || got.Filters != 0 {
		t.Errorf("one thread without a filter: %v, %d of %d", got.Mode, got.Reachable, got.Total)
	}
	got, err = evaluate(local, []thread{{mode: ModeStrict}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode != ModeStrict || got.Reachable != 4 || got.Foreign != 0 {
		t.Errorf("strict mode: %+v", got)
	}
}

func TestTablesKnowBothArchitectures(t *testing.T) {
	for arch, want := range map[string]map[uint32]string{
		"amd64": {0: "read", 59: "execve", 101: "ptrace", 321: "bpf", 435: "clone3"},
		"arm64": {63: "read", 221: "execve", 117: "ptrace", 280: "bpf", 435: "clone3"},
	} {
		m := newMachine(arch)
		if !slices.IsSorted(m.numbers) || len(m.numbers) != len(m.calls) {
			t.Errorf("%s: numbers and names differ", arch)
		}
		for nr, name := range want {
			if m.calls[nr] != name {
				t.Errorf("%s: call %d is %q, want %q", arch, nr, m.calls[nr], name)
			}
		}
	}
	if m := newMachine("riscv64"); len(m.numbers) != 0 {
		t.Error("an architecture without a table has one")
	}
}
