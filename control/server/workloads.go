package server

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/control/placement"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// ApplyWorkload stores desired state. It returns once a majority of servers
// has it on disk.
func (s *fleetAPI) ApplyWorkload(ctx context.Context, req *redoubtv1.ApplyWorkloadRequest) (*redoubtv1.ApplyWorkloadResponse, error) {
	spec, err := fleet.NewWorkload(req.GetWorkload())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	tracing.SpanOf(ctx).Set(tracing.KeyWorkload, spec.Key())
	if err := roomForWorkload(s.store.Snapshot(), spec.Namespace, spec.Name); err != nil {
		return nil, err
	}
	results, err := s.propose(ctx, req.GetCommandId(), &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{
		Workload: spec.Proto(), ExpectedRevision: req.ExpectedRevision, User: callerFrom(ctx).Name(), Uid: leader.NewUID(),
		Trace: string(tracing.FromContext(ctx)),
	}}})
	if err != nil {
		return nil, err
	}
	tracing.SpanOf(ctx).Set(tracing.KeyResult, results[0].GetResult())
	w, err := s.stored(ctx, spec.Namespace, spec.Name)
	if err != nil {
		return nil, err
	}
	s.log.Info("applied workload", "workload", spec.Key(), "result", results[0].GetResult(), "user", callerFrom(ctx).Name())
	return &redoubtv1.ApplyWorkloadResponse{Workload: w, Result: results[0].GetResult()}, nil
}

// StopWorkload ends a workload: its instances stop, then it is forgotten.
func (s *fleetAPI) StopWorkload(ctx context.Context, req *redoubtv1.StopWorkloadRequest) (*redoubtv1.StopWorkloadResponse, error) {
	ns := fleet.NamespaceOrDefault(req.GetNamespace())
	if _, err := s.propose(ctx, req.GetCommandId(), &redoubtv1.Operation{Operation: &redoubtv1.Operation_StopWorkload{StopWorkload: &redoubtv1.StopWorkloadOp{
		Namespace: ns, Name: req.GetName(), ExpectedRevision: req.ExpectedRevision, User: callerFrom(ctx).Name(),
	}}}); err != nil {
		return nil, err
	}
	s.log.Info("stopping workload", "workload", ns+"/"+req.GetName(), "user", callerFrom(ctx).Name())
	w, err := s.stored(ctx, ns, req.GetName())
	if status.Code(err) == codes.NotFound { // it had nothing running and is gone
		return &redoubtv1.StopWorkloadResponse{}, nil
	}
	return &redoubtv1.StopWorkloadResponse{Workload: w}, err
}

// GetWorkload returns one workload with its instances and what they wait for.
func (s *fleetAPI) GetWorkload(ctx context.Context, req *redoubtv1.GetWorkloadRequest) (*redoubtv1.GetWorkloadResponse, error) {
	w, err := s.stored(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &redoubtv1.GetWorkloadResponse{Workload: w}, nil
}

// ListWorkloads returns those of a namespace, or all that the caller may see.
func (s *fleetAPI) ListWorkloads(ctx context.Context, req *redoubtv1.ListWorkloadsRequest) (*redoubtv1.ListWorkloadsResponse, error) {
	p, err := s.plan(ctx, nil)
	if err != nil {
		return nil, err
	}
	resp := &redoubtv1.ListWorkloadsResponse{}
	for _, w := range p.view.Workloads(nil, req.GetNamespace()) {
		if visible(p.view, callerFrom(ctx), w.Spec.Namespace) {
			resp.Workloads = append(resp.Workloads, s.describeWorkload(p, w))
		}
	}
	return resp, nil
}

// PlanWorkload answers what an apply would do, and changes nothing.
func (s *fleetAPI) PlanWorkload(ctx context.Context, req *redoubtv1.PlanWorkloadRequest) (*redoubtv1.PlanWorkloadResponse, error) {
	spec, err := fleet.NewWorkload(req.GetWorkload())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p, err := s.planInput(ctx)
	if err != nil {
		return nil, err
	}
	resp := &redoubtv1.PlanWorkloadResponse{Result: state.Created}
	with := p.withSpec(&spec)
	if before, ok := p.view.Workload(nil, spec.Namespace, spec.Name); ok && !before.Stopping {
		resp.ChangedFields = fleet.Diff(*before.Spec, spec)
		resp.Result = state.Changed
		if len(resp.ChangedFields) == 0 {
			resp.Result = state.Unchanged
			with = p.input
		}
	}
	e, ok := placement.Explain(with, s.leader.Policy(), spec.Namespace, spec.Name)
	if !ok {
		return nil, status.Errorf(codes.Internal, "plan %s: the plan does not speak of it", spec.Key())
	}
	resp.Explanation = explanationToProto(e)
	return resp, nil
}

// ExplainWorkload answers why here, why not there, and what would help.
func (s *fleetAPI) ExplainWorkload(ctx context.Context, req *redoubtv1.ExplainWorkloadRequest) (*redoubtv1.ExplainWorkloadResponse, error) {
	p, err := s.plan(ctx, nil)
	if err != nil {
		return nil, err
	}
	ns, name := fleet.NamespaceOrDefault(req.GetNamespace()), req.GetName()
	w, ok := p.view.Workload(nil, ns, name)
	if !ok {
		i, found := p.view.InstanceNamed(nil, ns, name)
		if found {
			w, ok = p.view.Workload(nil, ns, i.Workload)
		}
		if !ok {
			return nil, noWorkload(ns, name)
		}
	}
	e, ok := placement.Explain(p.input, s.leader.Policy(), ns, w.Spec.Name)
	if !ok {
		return nil, noWorkload(ns, name)
	}
	return &redoubtv1.ExplainWorkloadResponse{Explanation: explanationToProto(e), Workload: s.describeWorkload(p, w)}, nil
}

func noWorkload(ns, name string) error {
	return status.Errorf(codes.NotFound, "there is no workload or instance %q in namespace %q; `redoubt workload list` shows what there is", name, ns)
}

// planned is one moment of the fleet with the plan that it leads to.
type planned struct {
	view  *state.View
	input placement.Input
	why   map[string]placement.Explanation // by workload key
}

// planInput is the fleet as the leader's placement sees it, freshly verified.
func (s *fleetAPI) planInput(ctx context.Context) (*planned, error) {
	if err := s.consensus.VerifyRead(ctx); err != nil {
		return nil, toStatus(err)
	}
	view := s.store.Snapshot()
	in, ok := s.leader.Input(view, nil)
	if !ok {
		return nil, errNoLeader()
	}
	return &planned{view: view, input: in}, nil
}

func (s *fleetAPI) plan(ctx context.Context, with *fleet.Workload) (*planned, error) {
	p, err := s.planInput(ctx)
	if err != nil {
		return nil, err
	}
	p.why = map[string]placement.Explanation{}
	for _, e := range placement.Plan(p.input, s.leader.Policy()).Explanations {
		p.why[e.Namespace+"/"+e.Workload] = e
	}
	return p, nil
}

// withSpec is the input as it would be after an apply of spec.
func (p *planned) withSpec(spec *fleet.Workload) placement.Input {
	in := placement.Input{Nodes: p.input.Nodes, Workloads: slices.Clone(p.input.Workloads)}
	next := fleet.StoredWorkload{Spec: spec, NextOrdinal: 1}
	for i, w := range in.Workloads {
		if w.Spec.Key() != spec.Key() {
			continue
		}
		next = *w.StoredWorkload
		next.Spec, next.Stopping = spec, false
		// Any revision that is no instance's: all of them are of the past.
		next.Revision = p.view.Index() + 1
		in.Workloads[i].StoredWorkload = &next
		return in
	}
	next.Revision = p.view.Index() + 1
	in.Workloads = append(in.Workloads, placement.Workload{StoredWorkload: &next})
	return in
}

func (s *fleetAPI) stored(ctx context.Context, ns, name string) (*redoubtv1.StoredWorkload, error) {
	p, err := s.plan(ctx, nil)
	if err != nil {
		return nil, err
	}
	ns = fleet.NamespaceOrDefault(ns)
	w, ok := p.view.Workload(nil, ns, name)
	if !ok {
		return nil, noWorkload(ns, name)
	}
	return s.describeWorkload(p, w), nil
}

// describeWorkload adds what is known now to what is stored.
func (s *fleetAPI) describeWorkload(p *planned, w *fleet.StoredWorkload) *redoubtv1.StoredWorkload {
	out := state.WorkloadToProto(w)
	st := &redoubtv1.WorkloadStatus{}
	instances := p.view.InstancesOfWorkload(nil, w.Spec.Namespace, w.Spec.Name)
	slices.SortFunc(instances, func(a, b *fleet.Instance) int { return cmp.Compare(a.Fence.Index, b.Fence.Index) })
	starting, ready := uint32(0), uint32(0)
	for _, i := range instances {
		switch i.Status.Phase {
		case fleet.InstanceRunning:
			if !i.Stop {
				st.Running++
				if i.Status.Ready() {
					ready++
				}
			}
		case fleet.InstanceAssigned, fleet.InstanceStarting, fleet.InstanceBackoff:
			starting++
		}
		st.Instances = append(st.Instances, s.describeInstance(p.view, i))
	}
	st.Ready = &ready
	st.Succeeded, st.Failed = w.Completions, w.Failures
	e := p.why[w.Spec.Key()]
	st.Pending = uint32(e.Pending)
	st.Desired = placement.Desired(p.input, w)
	st.Why = e.Why()
	st.Phase = phaseOf(w, st, starting)
	if word := waitsFor(instances); word != "" && e.Pending == 0 {
		st.Why = word
	}
	out.Status = st
	return out
}

// waitsFor is what the first instance says that was placed and is not as it
// should be: that its image is missing, why it ended and is to be started again,
// or why it is not ready.
func waitsFor(instances []*fleet.Instance) string {
	for _, i := range instances {
		switch i.Status.Phase {
		case fleet.InstanceAssigned, fleet.InstanceStarting, fleet.InstanceBackoff, fleet.InstanceRejected:
			if !i.Stop && i.Status.Message != "" {
				return i.Instance + ": " + i.Status.Message
			}
		case fleet.InstanceRunning:
			if !i.Stop && i.Status.NotReady != "" {
				return i.Instance + ": " + i.Status.NotReady
			}
		}
	}
	return ""
}

// phaseOf sums a workload's instances up in a word.
func phaseOf(w *fleet.StoredWorkload, st *redoubtv1.WorkloadStatus, starting uint32) redoubtv1.WorkloadPhase {
	job := w.Spec.Job
	switch {
	case w.Stopping:
		return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_STOPPING
	case job != nil && int(w.Completions) >= job.Completions:
		return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_COMPLETED
	case job != nil && int(w.Failures) > w.Spec.FailuresBorne():
		return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_FAILED
	case st.GetReady() > 0 && st.GetReady() >= st.Desired:
		return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_RUNNING
	case st.GetReady() > 0:
		return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_PARTIAL
	case starting > 0 || st.Running > 0:
		return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_STARTING
	}
	return redoubtv1.WorkloadPhase_WORKLOAD_PHASE_PENDING
}

func (s *Server) describeInstance(view *state.View, i *fleet.Instance) *redoubtv1.Instance {
	out := &redoubtv1.Instance{
		Assignment: state.AssignmentToProto(&i.Assignment), Status: state.StatusToProto(&i.Status),
		Created: timestamp(i.Created), Ready: i.Status.Ready(),
	}
	out.Assignment.Spec = nil // the workload has it
	if n, ok := view.Node(nil, i.Node); ok {
		if v, ok := s.leader.View(n); ok {
			out.NodeState = redoubtv1.NodeState(v.State)
		}
	}
	return out
}

// instancesOf returns the instances that a name means: one, or all of a
// workload that have an agent to ask.
func (s *fleetAPI) instancesOf(ctx context.Context, ns, name string) ([]instanceRef, error) {
	if err := s.catchUp(ctx, 0); err != nil {
		return nil, toStatus(err)
	}
	return namedInstances(s.store.Snapshot(), fleet.NamespaceOrDefault(ns), name)
}

func namedInstances(view *state.View, ns, name string) ([]instanceRef, error) {
	var refs []instanceRef
	if _, ok := view.Workload(nil, ns, name); ok {
		instances := view.InstancesOfWorkload(nil, ns, name)
		slices.SortFunc(instances, func(a, b *fleet.Instance) int { return cmp.Compare(a.Fence.Index, b.Fence.Index) })
		for _, i := range instances {
			if i.Status.Phase != fleet.InstanceAssigned && i.Status.Phase != fleet.InstanceRejected && i.Status.Phase != fleet.InstanceLost {
				refs = append(refs, instanceRef{UID: i.UID, Instance: i.Instance, Node: string(i.Node)})
			}
		}
		if len(refs) == 0 {
			return nil, status.Errorf(codes.FailedPrecondition, "workload %q has no instance that has started; `redoubt explain %s` says what it waits for", name, name)
		}
		return refs, nil
	}
	if i, ok := view.InstanceNamed(nil, ns, name); ok {
		return []instanceRef{{UID: i.UID, Instance: i.Instance, Node: string(i.Node)}}, nil
	}
	return nil, noWorkload(ns, name)
}

// runningInstance returns the instance that a name means, or the first running
// one of the workload.
func (s *fleetAPI) runningInstance(ctx context.Context, ns, name string) (instanceRef, error) {
	refs, err := s.instancesOf(ctx, ns, name)
	if err != nil {
		return instanceRef{}, err
	}
	view := s.store.Snapshot()
	phase := fleet.InstanceUnknown
	for _, r := range refs {
		if i, ok := view.Instance(nil, r.UID); ok {
			if phase = i.Status.Phase; phase == fleet.InstanceRunning {
				return r, nil
			}
		}
	}
	return instanceRef{}, status.Errorf(codes.FailedPrecondition, "no instance of %q is running (%s is %s)", name, refs[len(refs)-1].Instance, phase)
}

// Watch tells of changes; the client then reads what it shows.
func (s *fleetAPI) Watch(_ *redoubtv1.WatchRequest, stream redoubtv1.FleetService_WatchServer) error {
	ctx := stream.Context()
	for {
		changed := s.store.Changed()
		if err := stream.Send(&redoubtv1.WatchResponse{Index: s.store.Index()}); err != nil {
			return err
		}
		if again, err := s.awaitChange(ctx, changed); !again {
			return err
		}
	}
}

// awaitChange waits until state has changed, and lets further changes join for
// a moment. A watch that is not to look again ends with the error.
func (s *Server) awaitChange(ctx context.Context, changed <-chan struct{}) (again bool, err error) {
	select {
	case <-changed:
		return pause(ctx, watchEvery), nil
	case <-ctx.Done():
		return false, nil
	case <-s.stopping:
		return false, status.Error(codes.Unavailable, errStopping.Error())
	}
}

func explanationToProto(e placement.Explanation) *redoubtv1.Explanation {
	out := &redoubtv1.Explanation{
		Workload: e.Workload, Summary: e.Summary, Pending: uint32(e.Pending),
		ScoreVersion: uint32(e.ScoreVersion), NodesConsidered: uint32(e.NodesConsidered),
	}
	for _, p := range e.Placed {
		out.Placed = append(out.Placed, &redoubtv1.Placed{
			Instance: p.Instance, Node: string(p.Node), Site: string(p.Site), Runtime: string(p.Runtime), Variant: p.Variant,
			Class: redoubtv1.IsolationClass(p.Class), Score: p.Score, Why: p.Why, Action: p.Action,
		})
	}
	for _, g := range e.Groups {
		pg := &redoubtv1.ReasonGroup{Reason: g.Reason, Code: g.Code, Fix: g.Fix}
		for _, n := range g.Nodes {
			pg.Nodes = append(pg.Nodes, string(n))
		}
		out.Groups = append(out.Groups, pg)
	}
	for _, r := range e.Rejections {
		out.Rejections = append(out.Rejections, &redoubtv1.Rejection{
			Node: string(r.Node), Site: string(r.Site), Runtime: string(r.Runtime), Variant: r.Variant, Code: r.Code, Reason: r.Reason, Fix: r.Fix,
		})
	}
	for _, f := range e.Fixes {
		out.Fixes = append(out.Fixes, &redoubtv1.Counterfactual{Change: f.Change, Effect: f.Effect})
	}
	return out
}
