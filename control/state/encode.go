package state

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// This file converts between the fleet's values and what the log and snapshots
// hold. Enumerations have the same numbers on both sides (a test keeps it so).

func timeToProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFromProto(p *timestamppb.Timestamp) time.Time {
	if p == nil || !p.IsValid() {
		return time.Time{}
	}
	return p.AsTime()
}

func durationToProto(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func number[T ~uint8](what string, n int32, last T) (T, error) {
	if n < 0 || n > int32(last) {
		return 0, fmt.Errorf("%s %d is not known to this version", what, n)
	}
	return T(n), nil
}

// TermsToProto and its kin translate one value; nil stays nil.
func TermsToProto(t *isolation.Terms) *redoubtv1.Terms {
	if t == nil {
		return nil
	}
	return &redoubtv1.Terms{Vm: float64(t.VM), Sandbox: float64(t.Sandbox), Surface: &redoubtv1.Surface{
		Syscalls: uint32(t.Surface.Syscalls), SyscallsTotal: uint32(t.Surface.SyscallsTotal),
		Devices: uint32(t.Surface.Devices), Measured: t.Surface.Measured, Source: t.Surface.Source,
	}}
}

// TermsFromProto is TermsToProto's inverse.
func TermsFromProto(p *redoubtv1.Terms) *isolation.Terms {
	if p == nil {
		return nil
	}
	s := p.GetSurface()
	return &isolation.Terms{VM: isolation.Level(p.GetVm()), Sandbox: isolation.Level(p.GetSandbox()), Surface: isolation.Surface{
		Syscalls: int(s.GetSyscalls()), SyscallsTotal: int(s.GetSyscallsTotal()),
		Devices: int(s.GetDevices()), Measured: s.GetMeasured(), Source: s.GetSource(),
	}}
}

// ReportToProto writes a node's report.
func ReportToProto(r *isolation.Report) *redoubtv1.Report {
	if r == nil {
		return nil
	}
	p := &redoubtv1.Report{
		Node: string(r.Node), Site: string(r.Site), Generation: r.Generation, Labels: r.Labels,
		Host: &redoubtv1.HostFacts{
			Arch: r.Host.Arch, Kernel: r.Host.Kernel, BootId: r.Host.BootID, CgroupV2: r.Host.CgroupV2,
			CpuMillis: r.Host.CPUMillis, MemoryBytes: r.Host.MemoryBytes,
			Kvm: &redoubtv1.Kvm{Verdict: redoubtv1.KvmVerdict(r.Host.KVM.Verdict), Reason: r.Host.KVM.Reason, Fix: r.Host.KVM.Fix, Rate: r.Host.KVM.Rate},
		},
	}
	for _, f := range r.Findings {
		q := &redoubtv1.Finding{
			Runtime: string(f.Runtime), Class: redoubtv1.IsolationClass(f.Class), State: redoubtv1.FindingState(f.State),
			Variant: f.Variant, Version: f.Version, Digest: f.Digest, Terms: TermsToProto(&f.Terms),
			Reason: f.Reason, Fix: f.Fix, OverheadMemoryBytes: f.OverheadMemory,
		}
		if f.Age != 0 {
			q.Age = durationpb.New(f.Age)
		}
		p.Findings = append(p.Findings, q)
	}
	return p
}

// ReportFromProto reads a report. It refuses enumerations that this version
// does not know, and judges nothing else.
func ReportFromProto(p *redoubtv1.Report) (*isolation.Report, error) {
	if p == nil {
		return nil, nil
	}
	h, k := p.GetHost(), p.GetHost().GetKvm()
	verdict, err := number("KVM verdict", int32(k.GetVerdict()), isolation.KVMUsable)
	if err != nil {
		return nil, err
	}
	r := &isolation.Report{
		Node: isolation.NodeID(p.GetNode()), Site: isolation.SiteID(p.GetSite()), Generation: p.GetGeneration(),
		Host: isolation.Host{
			Arch: h.GetArch(), Kernel: h.GetKernel(), BootID: h.GetBootId(), CgroupV2: h.GetCgroupV2(),
			CPUMillis: h.GetCpuMillis(), MemoryBytes: h.GetMemoryBytes(),
			KVM: isolation.KVM{Verdict: verdict, Reason: k.GetReason(), Fix: k.GetFix(), Rate: k.GetRate()},
		},
	}
	if len(p.GetLabels()) > 0 {
		r.Labels = make(map[string]string, len(p.GetLabels()))
		for k, v := range p.GetLabels() {
			r.Labels[k] = v
		}
	}
	for _, q := range p.GetFindings() {
		class, err := number("isolation class", int32(q.GetClass()), isolation.ClassMicroVM)
		if err != nil {
			return nil, fmt.Errorf("finding of %.40q: %w", q.GetRuntime(), err)
		}
		state, err := number("finding state", int32(q.GetState()), isolation.StateVerified)
		if err != nil {
			return nil, fmt.Errorf("finding of %.40q: %w", q.GetRuntime(), err)
		}
		f := isolation.Finding{
			Runtime: isolation.Name(q.GetRuntime()), Class: class, State: state,
			Variant: q.GetVariant(), Version: q.GetVersion(), Digest: q.GetDigest(),
			Reason: q.GetReason(), Fix: q.GetFix(), OverheadMemory: q.GetOverheadMemoryBytes(),
			Age: q.GetAge().AsDuration(),
		}
		if t := TermsFromProto(q.GetTerms()); t != nil {
			f.Terms = *t
		}
		r.Findings = append(r.Findings, f)
	}
	return r, nil
}

// NodeToProto writes a node for a snapshot.
func NodeToProto(n *fleet.Node) *redoubtv1.StoredNode {
	return &redoubtv1.StoredNode{
		Id: string(n.ID), Site: string(n.Site), KeyHash: n.KeyHash, Enrolled: timeToProto(n.Enrolled),
		Report: ReportToProto(n.Report), AgentVersion: n.AgentVersion, GossipAddress: n.GossipAddress,
		Cordoned: n.Cordoned, Lost: n.Lost, Revision: n.Revision,
	}
}

// NodeFromProto is NodeToProto's inverse.
func NodeFromProto(p *redoubtv1.StoredNode) (*fleet.Node, error) {
	report, err := ReportFromProto(p.GetReport())
	if err != nil {
		return nil, fmt.Errorf("report of node %s: %w", p.GetId(), err)
	}
	return &fleet.Node{
		ID: isolation.NodeID(p.GetId()), Site: isolation.SiteID(p.GetSite()), KeyHash: p.GetKeyHash(),
		Enrolled: timeFromProto(p.GetEnrolled()), Report: report, AgentVersion: p.GetAgentVersion(),
		GossipAddress: p.GetGossipAddress(), Cordoned: p.GetCordoned(), Lost: p.GetLost(), Revision: p.GetRevision(),
	}, nil
}

// WorkloadToProto writes a stored workload, without the status that is computed
// for people.
func WorkloadToProto(w *fleet.StoredWorkload) *redoubtv1.StoredWorkload {
	return &redoubtv1.StoredWorkload{
		Spec: w.Spec.Proto(), Revision: w.Revision, Stopping: w.Stopping,
		Created: timeToProto(w.Created), Updated: timeToProto(w.Updated), UpdatedBy: w.UpdatedBy,
		NextOrdinal: w.NextOrdinal, Failures: w.Failures, Completions: w.Completions, Uid: w.UID, Trace: w.Trace,
	}
}

// WorkloadFromProto is WorkloadToProto's inverse.
func WorkloadFromProto(p *redoubtv1.StoredWorkload) (*fleet.StoredWorkload, error) {
	spec, err := fleet.WorkloadFromProto(p.GetSpec())
	if err != nil {
		return nil, err
	}
	return &fleet.StoredWorkload{
		Spec: &spec, UID: p.GetUid(), Revision: p.GetRevision(), Stopping: p.GetStopping(),
		Created: timeFromProto(p.GetCreated()), Updated: timeFromProto(p.GetUpdated()), UpdatedBy: p.GetUpdatedBy(),
		NextOrdinal: p.GetNextOrdinal(), Failures: p.GetFailures(), Completions: p.GetCompletions(), Trace: p.GetTrace(),
	}, nil
}

// RoleToProto writes a role binding.
func RoleToProto(r *fleet.Role) *redoubtv1.RoleBinding {
	return &redoubtv1.RoleBinding{User: r.User, Namespace: r.Namespace, Role: r.Role}
}

// RoleFromProto reads a role binding; no namespace means all.
func RoleFromProto(p *redoubtv1.RoleBinding) *fleet.Role {
	r := &fleet.Role{User: p.GetUser(), Namespace: p.GetNamespace(), Role: p.GetRole()}
	if r.Namespace == "" {
		r.Namespace = fleet.AllNamespaces
	}
	return r
}

// ServerToProto writes what is stored of a server, not what moves.
func ServerToProto(s *fleet.Server) *redoubtv1.Server {
	return &redoubtv1.Server{
		Id: s.ID, ApiAddress: s.APIAddress, RaftAddress: s.RaftAddress, EnrollAddress: s.EnrollAddress,
		FeatureLevel: s.FeatureLevel, Version: s.Version,
	}
}

// ServerFromProto reads what is stored of a server.
func ServerFromProto(p *redoubtv1.Server) *fleet.Server {
	return &fleet.Server{
		ID: p.GetId(), APIAddress: p.GetApiAddress(), RaftAddress: p.GetRaftAddress(), EnrollAddress: p.GetEnrollAddress(),
		FeatureLevel: p.GetFeatureLevel(), Version: p.GetVersion(),
	}
}

// AuthorityToProto writes a trust anchor.
func AuthorityToProto(a *fleet.Authority) *redoubtv1.Authority {
	return &redoubtv1.Authority{Server: a.Server, Certificate: a.Certificate}
}

// AuthorityFromProto reads a trust anchor.
func AuthorityFromProto(p *redoubtv1.Authority) *fleet.Authority {
	return &fleet.Authority{Server: p.GetServer(), Certificate: p.GetCertificate()}
}

// TokenToProto writes a token.
func TokenToProto(t *fleet.Token) *redoubtv1.StoredToken {
	return &redoubtv1.StoredToken{
		Token: &redoubtv1.PutToken{
			Id: t.ID, SecretHash: t.SecretHash, Role: t.Role, Node: string(t.Node), Site: string(t.Site), Expires: timeToProto(t.Expires),
		},
		KeyHash: t.KeyHash, BoundNode: t.BoundTo,
	}
}

// TokenFromProto reads a token.
func TokenFromProto(p *redoubtv1.StoredToken) *fleet.Token {
	t := p.GetToken()
	return &fleet.Token{
		ID: t.GetId(), SecretHash: t.GetSecretHash(), Role: t.GetRole(), Node: isolation.NodeID(t.GetNode()),
		Site: isolation.SiteID(t.GetSite()), Expires: timeFromProto(t.GetExpires()),
		KeyHash: p.GetKeyHash(), BoundTo: p.GetBoundNode(),
	}
}

// SiteKeysToProto writes a site's gossip keys.
func SiteKeysToProto(k *fleet.SiteKeys) *redoubtv1.PutSiteKeys {
	return &redoubtv1.PutSiteKeys{Site: string(k.Site), Keys: k.Keys}
}

// SiteKeysFromProto reads a site's gossip keys.
func SiteKeysFromProto(p *redoubtv1.PutSiteKeys) *fleet.SiteKeys {
	return &fleet.SiteKeys{Site: isolation.SiteID(p.GetSite()), Keys: p.GetKeys()}
}
