package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/isolation"
)

// FakeHost is a host in memory, for simulations and for an agent that is told
// so explicitly (--driver=fake). It claims what findings say, and proves
// nothing; nobody runs work that matters on it.
func FakeHost(d driver.Driver, findings ...isolation.Finding) Host {
	if len(findings) == 0 {
		findings = []isolation.Finding{
			{Runtime: isolation.RuntimeGVisor, Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateVerified, Version: "fake",
				Terms: isolation.Terms{Sandbox: 0.5, Surface: isolation.Surface{Syscalls: 96, SyscallsTotal: 362, Source: "fake driver"}}},
			{Runtime: isolation.RuntimeRunc, Class: isolation.ClassContainer, State: isolation.StateVerified, Version: "fake",
				Terms: isolation.Terms{Surface: isolation.Surface{Syscalls: 200, SyscallsTotal: 362, Source: "fake driver"}}},
		}
	}
	return Host{
		Driver: d, Network: &fakeNetwork{held: map[string]bool{}}, Inside: fakePort,
		Facts: func(context.Context) (isolation.Host, error) {
			id, err := bootID()
			if err != nil {
				return isolation.Host{}, err
			}
			return isolation.Host{Arch: runtime.GOARCH, Kernel: "fake", BootID: id, CPUMillis: 4000, MemoryBytes: 4 << 30,
				KVM: isolation.KVM{Verdict: isolation.KVMAbsent, Reason: "the fake driver has none"}}, nil
		},
		Findings: func(context.Context, isolation.Host) ([]isolation.Finding, error) {
			return append([]isolation.Finding{}, findings...), nil
		},
	}
}

// fakeNetwork gives out nothing and remembers to whom.
type fakeNetwork struct {
	mu   sync.Mutex
	held map[string]bool
}

func (n *fakeNetwork) Attach(_ context.Context, uid string, _ reconcile.NetworkSpec) (reconcile.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[uid] = true
	return reconcile.Attachment{}, nil
}

func (n *fakeNetwork) Detach(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.held, uid)
	return nil
}

func (n *fakeNetwork) Attached() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]string{}
	for uid := range n.held {
		out[uid] = ""
	}
	return out
}

func (n *fakeNetwork) Sweep(_ context.Context, keep func(string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid := range n.held {
		if !keep(uid) {
			delete(n.held, uid)
		}
	}
	return nil
}

// fakePort is every port of every instance: it sends back what it is sent.
func fakePort(context.Context, string, uint16) (net.Conn, error) {
	r, w := io.Pipe()
	return echo{r: r, w: w}, nil
}

type echo struct {
	net.Conn // deadlines and addresses, which nobody asks for
	r        *io.PipeReader
	w        *io.PipeWriter
}

func (e echo) Read(p []byte) (int, error)  { return e.r.Read(p) }
func (e echo) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e echo) CloseWrite() error           { return e.w.Close() }
func (e echo) Close() error                { return errors.Join(e.r.Close(), e.w.Close()) }
