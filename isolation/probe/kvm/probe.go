package kvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"redoubt.dev/redoubt/isolation"
)

const (
	device = "/dev/kvm"
	// childName is argv[0] of the process that runs the guest.
	childName = "redoubt-kvm-probe"
	// childLife bounds the child by its own clock, childWait by the parent's.
	childLife = 2 * time.Second
	childWait = 3 * time.Second
)

func init() {
	if os.Args[0] != childName {
		return
	}
	time.AfterFunc(childLife, func() { os.Exit(3) })
	began := time.Now()
	o := runGuest()
	o.Took = time.Since(began)
	if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
		os.Exit(2)
	}
	os.Exit(0)
}

// Probe runs the guest and gives the verdict. It ends by ctx, and within three
// seconds whatever KVM does; where KVM answers at all it takes about a tenth
// of a second. It gives KVMUnknown where nothing could be measured.
func Probe(ctx context.Context) isolation.KVM {
	if _, err := os.Stat(device); errors.Is(err, fs.ErrNotExist) {
		cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
		return absent(string(cpuinfo))
	}
	if !supported {
		return isolation.KVM{Verdict: isolation.KVMUnknown, Reason: "there is no KVM probe for this architecture yet"}
	}
	o, err := measure(ctx)
	if err != nil {
		return isolation.KVM{Verdict: isolation.KVMUnknown, Reason: "the KVM probe gave no answer: " + err.Error(),
			Fix: "see the kernel log for KVM errors, then probe again"}
	}
	return judge(o)
}

func measure(ctx context.Context) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, childWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{childName}
	// One P for the guest, one for the clock that interrupts it; nothing else
	// of this process's environment matters to the child.
	cmd.Env = []string{"GOMAXPROCS=2", "GOTRACEBACK=none"}
	// A child that cannot be killed must not hold the caller.
	cmd.WaitDelay = 100 * time.Millisecond
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := run(ctx, cmd); err != nil {
		if first, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n"); first != "" {
			err = fmt.Errorf("%w: %s", err, first)
		}
		return outcome{}, err
	}
	var o outcome
	if err := json.Unmarshal(out.Bytes(), &o); err != nil {
		return outcome{}, fmt.Errorf("read the answer of the guest's process: %w", err)
	}
	return o, nil
}

// run is cmd.Run, except that it leaves a child behind that not even SIGKILL
// ends, one stuck in the kernel.
func run(ctx context.Context, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the guest's process: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(500 * time.Millisecond):
		return fmt.Errorf("process %d cannot be killed: %w", cmd.Process.Pid, ctx.Err())
	}
}

// absent words the verdict of a host without /dev/kvm by what its processor
// says of itself.
func absent(cpuinfo string) isolation.KVM {
	out := isolation.KVM{Verdict: isolation.KVMAbsent}
	has := func(flag string) bool {
		for line := range strings.Lines(cpuinfo) {
			key, flags, _ := strings.Cut(line, ":")
			if k := strings.TrimSpace(key); k == "flags" || k == "Features" {
				return strings.Contains(" "+strings.TrimSpace(flags)+" ", " "+flag+" ")
			}
		}
		return false
	}
	switch {
	case has("vmx"):
		out.Reason = "there is no /dev/kvm, though the processor has VMX"
		out.Fix = "load the module kvm_intel; if it refuses, switch virtualisation on in the firmware"
	case has("svm"):
		out.Reason = "there is no /dev/kvm, though the processor has SVM"
		out.Fix = "load the module kvm_amd; if it refuses, switch virtualisation on in the firmware"
	case has("hypervisor"):
		out.Reason = "there is no /dev/kvm: this is a virtual machine without nested virtualisation"
		out.Fix = "enable nested virtualisation for this machine, or use a host of bare metal"
	default:
		out.Reason = "there is no /dev/kvm"
		out.Fix = "switch virtualisation on in the firmware and load the module kvm_intel or kvm_amd"
	}
	return out
}
