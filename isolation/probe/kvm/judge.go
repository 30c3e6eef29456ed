package kvm

import (
	"fmt"
	"time"

	"redoubt.dev/redoubt/isolation"
)

const (
	// usableRate is the least rate of ring 0 loop iterations a second of CPU
	// time at which a guest counts as running on the hardware: 200,000 in
	// 100 ms. Measured: paravirtual 0.7 million at best, a machine emulated in
	// software 15 million, hardware 2,000 million.
	usableRate = 2e6
	// triesWanted of the rate; the best counts.
	triesWanted = 3
)

// outcome is what the child measured; it crosses the pipe as JSON.
type outcome struct {
	// Stage and Error: what failed before a guest could run, if anything did.
	Stage, Error string
	// Denied says that Error is a refusal for lack of permission.
	Denied bool
	// Steps are the letters that the guest spoke: allSteps when all went well,
	// B when it saw something wrong.
	Steps string
	// End says how the guest's run ended, in words: "halt", "shutdown", ….
	End string
	// Rates are the iterations a second of each try, best effort.
	Rates []float64
	// Starved says that a try got no CPU time to speak of.
	Starved bool
	// Took is the child's own time.
	Took time.Duration
}

// allSteps: long mode, an exception, odd instructions, a system call from ring
// 3, going on after a halt.
const allSteps = "LXISH"

// Remedies that more than one verdict names.
const (
	fixHardware = "use a host with hardware virtualisation, or enable nested SVM or VMX below this one"
	fixDevice   = "run the agent as root, or give it read and write access to /dev/kvm"
)

// judge turns measurements into the verdict. Reasons are the same on every
// host of a kind, so that nodes can be grouped by them.
func judge(o outcome) isolation.KVM {
	out := isolation.KVM{}
	for _, r := range o.Rates {
		out.Rate = max(out.Rate, r)
	}
	unusable := func(v isolation.KVMVerdict, reason, fix string) isolation.KVM {
		out.Verdict, out.Reason, out.Fix = v, reason, fix
		return out
	}
	switch {
	case o.Denied:
		return unusable(isolation.KVMUnusable, "/dev/kvm may not be opened by this process", fixDevice)
	case o.Error != "":
		return unusable(isolation.KVMUnusable, fmt.Sprintf("KVM cannot %s: %s", o.Stage, o.Error), fixHardware)
	}
	slow := len(o.Rates) > 0 && out.Rate < usableRate
	switch {
	case o.Steps == allSteps && o.End == "halt" && len(o.Rates) > 0 && !slow:
		return unusable(isolation.KVMUsable, "", "")
	case o.Starved && len(o.Rates) == 0:
		return unusable(isolation.KVMUnknown, "the host was too busy to measure KVM", "probe again when the host is less busy")
	case slow:
		// It runs code, but not on the hardware, whether or not all of the
		// guest's steps came through.
		return unusable(isolation.KVMParavirtual, "KVM is paravirtual, ordinary guests do not run", fixHardware)
	case o.Steps == "":
		return unusable(isolation.KVMUnusable, "KVM opens, but a guest does not enter long mode: "+o.End, fixHardware)
	default:
		return unusable(isolation.KVMUnusable, "KVM opens, but a guest fails after "+describe(o.Steps)+": "+o.End, fixHardware)
	}
}

// describe names the last step that the guest made.
func describe(steps string) string {
	switch steps {
	case "L":
		return "entering long mode"
	case "LX":
		return "its first exception"
	case "LXI":
		return "a few instructions"
	case "LXIS":
		return "its first system call"
	case "LXISH":
		return "its first halt"
	}
	return fmt.Sprintf("the steps %q", steps)
}
