package state

import (
	"fmt"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// FenceToProto writes a fence.
func FenceToProto(f fleet.Fence) *redoubtv1.Fence {
	return &redoubtv1.Fence{Index: f.Index, SiteEpoch: f.SiteEpoch}
}

// FenceFromProto reads a fence; none is the oldest.
func FenceFromProto(p *redoubtv1.Fence) fleet.Fence {
	return fleet.Fence{Index: p.GetIndex(), SiteEpoch: p.GetSiteEpoch()}
}

// AssignmentToProto writes an assignment. In an Assign operation the spec can be
// left out: Apply takes the stored one of that revision.
func AssignmentToProto(a *fleet.Assignment) *redoubtv1.Assignment {
	p := &redoubtv1.Assignment{
		Uid: a.UID, Namespace: a.Namespace, Workload: a.Workload, Instance: a.Instance, Fence: FenceToProto(a.Fence),
		Node: string(a.Node), Site: string(a.Site), Runtime: string(a.Runtime), Variant: a.Variant,
		Class: redoubtv1.IsolationClass(a.Class), Floor: redoubtv1.IsolationClass(a.Floor),
		Revision: a.Revision, Stop: a.Stop, NodeGeneration: a.NodeGeneration, Why: a.Why,
		CpuMillis: a.CPUMillis, MemoryBytes: a.MemoryBytes, Trace: a.Trace,
	}
	if a.Spec != nil {
		p.Spec = a.Spec.Proto()
	}
	return p
}

// AssignmentFromProto is AssignmentToProto's inverse.
func AssignmentFromProto(p *redoubtv1.Assignment) (*fleet.Assignment, error) {
	a, err := assignmentWithoutSpec(p)
	if err != nil || p.GetSpec() == nil {
		return a, err
	}
	spec, err := fleet.WorkloadFromProto(p.GetSpec())
	if err != nil {
		return nil, err
	}
	a.Spec = &spec
	return a, nil
}

func assignmentWithoutSpec(p *redoubtv1.Assignment) (*fleet.Assignment, error) {
	class, err := number("isolation class", int32(p.GetClass()), isolation.ClassMicroVM)
	if err != nil {
		return nil, err
	}
	floor, err := number("floor", int32(p.GetFloor()), isolation.ClassMicroVM)
	if err != nil {
		return nil, err
	}
	return &fleet.Assignment{
		UID: p.GetUid(), Namespace: p.GetNamespace(), Workload: p.GetWorkload(), Instance: p.GetInstance(), Fence: FenceFromProto(p.GetFence()),
		Node: isolation.NodeID(p.GetNode()), Site: isolation.SiteID(p.GetSite()), Runtime: isolation.Name(p.GetRuntime()), Variant: p.GetVariant(),
		Class: class, Floor: floor, Revision: p.GetRevision(), Stop: p.GetStop(), NodeGeneration: p.GetNodeGeneration(), Why: p.GetWhy(),
		CPUMillis: p.GetCpuMillis(), MemoryBytes: p.GetMemoryBytes(), Trace: p.GetTrace(),
	}, nil
}

// StatusToProto writes what an agent said.
func StatusToProto(s *fleet.Status) *redoubtv1.InstanceStatus {
	return &redoubtv1.InstanceStatus{
		Uid: s.UID, Fence: FenceToProto(s.Fence), Sequence: s.Sequence, Phase: redoubtv1.InstancePhase(s.Phase),
		Message: s.Message, Pid: s.PID, Runtime: string(s.Runtime), Started: timeToProto(s.Started), Finished: timeToProto(s.Finished),
		ExitCode: s.ExitCode, Restarts: s.Restarts, Address: s.Address, ImageDigest: s.ImageDigest,
		Measured: TermsToProto(s.Measured), Kernel: s.Kernel,
		NotReady: s.NotReady, BackOff: durationToProto(s.BackOff), LastEnd: s.LastEnd,
	}
}

// StatusFromProto reads what an agent said.
func StatusFromProto(p *redoubtv1.InstanceStatus) (*fleet.Status, error) {
	phase, err := number("phase", int32(p.GetPhase()), fleet.InstanceRejected)
	if err != nil {
		return nil, err
	}
	return &fleet.Status{
		UID: p.GetUid(), Fence: FenceFromProto(p.GetFence()), Sequence: p.GetSequence(), Phase: phase,
		Message: p.GetMessage(), PID: p.GetPid(), Runtime: isolation.Name(p.GetRuntime()),
		Started: timeFromProto(p.GetStarted()), Finished: timeFromProto(p.GetFinished()),
		ExitCode: p.GetExitCode(), Restarts: p.GetRestarts(), Address: p.GetAddress(), ImageDigest: p.GetImageDigest(),
		Measured: TermsFromProto(p.GetMeasured()), Kernel: p.GetKernel(),
		NotReady: p.GetNotReady(), BackOff: p.GetBackOff().AsDuration(), LastEnd: p.GetLastEnd(),
	}, nil
}

// InstanceToProto writes an instance for a snapshot.
func InstanceToProto(i *fleet.Instance) *redoubtv1.StoredAssignment {
	return &redoubtv1.StoredAssignment{
		Assignment: AssignmentToProto(&i.Assignment), Status: StatusToProto(&i.Status),
		Created: timeToProto(i.Created), Revision: i.Version,
	}
}

// InstanceFromProto is InstanceToProto's inverse.
func InstanceFromProto(p *redoubtv1.StoredAssignment) (*fleet.Instance, error) {
	a, err := AssignmentFromProto(p.GetAssignment())
	if err != nil {
		return nil, fmt.Errorf("assignment of %.80q: %w", p.GetAssignment().GetInstance(), err)
	}
	if a.Spec == nil {
		return nil, fmt.Errorf("assignment of %.80q has no spec", a.Instance)
	}
	s, err := StatusFromProto(p.GetStatus())
	if err != nil {
		return nil, fmt.Errorf("status of %.80q: %w", a.Instance, err)
	}
	return &fleet.Instance{Assignment: *a, Status: *s, Created: timeFromProto(p.GetCreated()), Version: p.GetRevision()}, nil
}
