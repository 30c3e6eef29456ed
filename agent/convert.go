package agent

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// Plain values inside, messages on the wire: this file and spec.go are where
// they meet.

var classes = map[redoubtv1.IsolationClass]isolation.Class{
	redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER: isolation.ClassContainer,
	redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX:   isolation.ClassSandbox,
	redoubtv1.IsolationClass_ISOLATION_CLASS_VM:        isolation.ClassVM,
	redoubtv1.IsolationClass_ISOLATION_CLASS_MICROVM:   isolation.ClassMicroVM,
}

var states = map[redoubtv1.FindingState]isolation.State{
	redoubtv1.FindingState_FINDING_STATE_UNUSABLE:  isolation.StateUnusable,
	redoubtv1.FindingState_FINDING_STATE_INSTALLED: isolation.StateInstalled,
	redoubtv1.FindingState_FINDING_STATE_VERIFIED:  isolation.StateVerified,
}

var verdicts = map[redoubtv1.KvmVerdict]isolation.KVMVerdict{
	redoubtv1.KvmVerdict_KVM_VERDICT_ABSENT:      isolation.KVMAbsent,
	redoubtv1.KvmVerdict_KVM_VERDICT_UNUSABLE:    isolation.KVMUnusable,
	redoubtv1.KvmVerdict_KVM_VERDICT_PARAVIRTUAL: isolation.KVMParavirtual,
	redoubtv1.KvmVerdict_KVM_VERDICT_USABLE:      isolation.KVMUsable,
}

var phases = map[redoubtv1.InstancePhase]store.Phase{
	redoubtv1.InstancePhase_INSTANCE_PHASE_ASSIGNED:  store.Assigned,
	redoubtv1.InstancePhase_INSTANCE_PHASE_STARTING:  store.Starting,
	redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING:   store.Running,
	redoubtv1.InstancePhase_INSTANCE_PHASE_BACKOFF:   store.BackOff,
	redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED: store.Succeeded,
	redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED:    store.Failed,
	redoubtv1.InstancePhase_INSTANCE_PHASE_STOPPED:   store.Stopped,
	redoubtv1.InstancePhase_INSTANCE_PHASE_REJECTED:  store.Rejected,
}

// wire is the key of v in m, the zero (unspecified) if there is none.
func wire[K, V comparable](m map[K]V, v V) (k K) {
	for key, value := range m {
		if value == v {
			return key
		}
	}
	return k
}

// reportProto is what a session sends.
func reportProto(r isolation.Report) *redoubtv1.Report {
	p := &redoubtv1.Report{
		Node: string(r.Node), Site: string(r.Site), Generation: r.Generation, Labels: r.Labels,
		Host: &redoubtv1.HostFacts{
			Arch: r.Host.Arch, Kernel: r.Host.Kernel, BootId: r.Host.BootID, CgroupV2: r.Host.CgroupV2,
			CpuMillis: r.Host.CPUMillis, MemoryBytes: r.Host.MemoryBytes,
			Kvm: &redoubtv1.Kvm{Verdict: wire(verdicts, r.Host.KVM.Verdict), Reason: r.Host.KVM.Reason, Fix: r.Host.KVM.Fix, Rate: r.Host.KVM.Rate},
		},
	}
	for _, f := range r.Findings {
		p.Findings = append(p.Findings, &redoubtv1.Finding{
			Runtime: string(f.Runtime), Class: wire(classes, f.Class), State: wire(states, f.State), Variant: f.Variant,
			Version: f.Version, Digest: f.Digest, Terms: termsProto(f.Terms), Reason: f.Reason, Fix: f.Fix,
			OverheadMemoryBytes: f.OverheadMemory, Age: durationpb.New(f.Age),
		})
	}
	return p
}

func termsProto(t isolation.Terms) *redoubtv1.Terms {
	return &redoubtv1.Terms{Vm: float64(t.VM), Sandbox: float64(t.Sandbox), Surface: &redoubtv1.Surface{
		Syscalls: uint32(t.Surface.Syscalls), SyscallsTotal: uint32(t.Surface.SyscallsTotal),
		Devices: uint32(t.Surface.Devices), Measured: t.Surface.Measured, Source: t.Surface.Source,
	}}
}

// measured is what the store keeps of measured terms.
func measured(t isolation.Terms) store.Measured {
	return store.Measured{VM: float64(t.VM), Sandbox: float64(t.Sandbox), Syscalls: t.Surface.Syscalls,
		SyscallsTotal: t.Surface.SyscallsTotal, Devices: t.Surface.Devices, Measured: t.Surface.Measured, Source: t.Surface.Source}
}

func terms(m store.Measured) isolation.Terms {
	return isolation.Terms{VM: isolation.Level(m.VM), Sandbox: isolation.Level(m.Sandbox), Surface: isolation.Surface{
		Syscalls: m.Syscalls, SyscallsTotal: m.SyscallsTotal, Devices: m.Devices, Measured: m.Measured, Source: m.Source}}
}

// statusProto is what the control plane is told of an instance.
func statusProto(f store.Facts) *redoubtv1.InstanceStatus {
	s := &redoubtv1.InstanceStatus{
		Uid: f.UID, Fence: &redoubtv1.Fence{Index: f.Fence.Index, SiteEpoch: f.Fence.Epoch}, Sequence: f.Sequence,
		Phase: wire(phases, f.Phase), Message: f.Message, Pid: int32(f.Pid), Runtime: f.Runtime,
		Started: stamp(f.Started), Finished: stamp(f.Finished), ExitCode: int32(f.ExitCode), Restarts: f.Restarts,
		Address: f.Address, ImageDigest: f.ImageDigest, Kernel: f.Kernel, LastEnd: f.LastEnd,
	}
	switch f.Phase {
	case store.Running:
		s.NotReady = f.NotReady
	case store.BackOff:
		s.BackOff = durationpb.New(f.Delay)
	}
	if f.Measured != nil {
		s.Measured = termsProto(terms(*f.Measured))
	}
	return s
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// assignment reads what the store keeps. What cannot be run here is said in
// Invalid and becomes a rejection; it never keeps the others from running.
func assignment(p *redoubtv1.Assignment) reconcile.Assignment {
	a := reconcile.Assignment{
		UID: p.GetUid(), Namespace: p.GetNamespace(), Workload: p.GetWorkload(), Instance: p.GetInstance(),
		Fence:   store.Fence{Index: p.GetFence().GetIndex(), Epoch: p.GetFence().GetSiteEpoch()},
		Runtime: isolation.Name(p.GetRuntime()), Variant: p.GetVariant(),
		Class: classes[p.GetClass()], Floor: classes[p.GetFloor()], Stop: p.GetStop(),
		Trace: tracing.Parse(p.GetTrace()),
	}
	if err := readSpec(&a, p.GetSpec()); err != nil {
		a.Invalid = "this agent cannot run the workload: " + err.Error()
	}
	if a.Floor == isolation.ClassUnknown {
		// Nothing is below an unknown floor, so nothing may start on it.
		a.Floor = isolation.ClassMicroVM
		a.Invalid = "the assignment names no isolation floor that this agent knows"
	}
	return a
}
