package server

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
)

// Metrics are a server's figures. docs/metrics.md lists them all. No label is a
// name that a caller chooses: methods, codes, states, phases and reasons are
// lists in the code.
type Metrics struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	refused  *prometheus.CounterVec
	proposed *prometheus.HistogramVec
	planned  prometheus.Histogram
	placed   prometheus.Histogram
	ran      prometheus.Histogram

	mu      sync.Mutex
	pending map[string]int

	s *Server // set by New; nil: it has not been made yet
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("redoubt_server_"+name, help, labels, nil)
}

var (
	infoDesc      = desc("info", "1, of the version that runs.", "version")
	leaderDesc    = desc("raft_leader", "1 if this server leads.")
	ledDesc       = desc("raft_has_leader", "1 if this server knows a leader.")
	termDesc      = desc("raft_term", "Raft's term as this server knows it.")
	appliedDesc   = desc("raft_applied_index", "Log index that this server has applied.")
	votersDesc    = desc("raft_voters", "Servers that vote.")
	storeDesc     = desc("store_failing", "1 if the store cannot be written, or only on its reserve.")
	svidDesc      = desc("svid_expiry_timestamp_seconds", "End of this server's certificate, Unix time.")
	sessionsDesc  = desc("sessions", "Agents' sessions with this server.")
	streamsDesc   = desc("streams", "Execs, logs and forwards that this server pairs.")
	nodesDesc     = desc("nodes", "Nodes by what the leader makes of them; on the leader only.", "state")
	instancesDesc = desc("instances", "Instances by phase.", "phase")
	workloadsDesc = desc("workloads", "Workloads that are wanted or still stopping.", "state")
	pendingDesc   = desc("pending_instances", "Instances that no node takes, by the first deciding reason; on the leader only.", "reason")
)

// NewMetrics makes the figures of one server.
func NewMetrics() *Metrics {
	return &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "redoubt_server_requests_total", Help: "Calls that ended, by method and gRPC code.",
		}, []string{"method", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "redoubt_server_request_seconds", Help: "How long unary calls took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"method"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "redoubt_server_refused_total", Help: "What was refused for a limit of its caller.",
		}, []string{"limit"}),
		proposed: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "redoubt_server_propose_seconds", Help: "From proposing a command to its being applied here.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 9),
		}, []string{"outcome"}),
		planned: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "redoubt_server_plan_seconds", Help: "How long one look at the whole fleet took the leader.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}),
		placed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "redoubt_server_placement_seconds", Help: "From the change of a workload to a node for an instance of it; on the leader only.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 9),
		}),
		ran: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "redoubt_server_running_seconds", Help: "From a node for an instance to its first being known to run; on the leader only.",
			Buckets: prometheus.ExponentialBuckets(0.03, 3, 9),
		}),
	}
}

// Proposed takes how long a proposal took, and whether it was done.
func (m *Metrics) Proposed(d time.Duration, err error) {
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	m.proposed.WithLabelValues(outcome).Observe(d.Seconds())
}

// Planned takes how long a plan took, and what it left pending, by reason.
func (m *Metrics) Planned(d time.Duration, pending map[string]int) {
	m.planned.Observe(d.Seconds())
	m.mu.Lock()
	m.pending = pending
	m.mu.Unlock()
}

// Placed takes how long a workload's change waited for a node.
func (m *Metrics) Placed(d time.Duration) { m.placed.Observe(d.Seconds()) }

// Ran takes how long an instance with a node took to run.
func (m *Metrics) Ran(d time.Duration) { m.ran.Observe(d.Seconds()) }

func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.requests.Describe(ch)
	m.took.Describe(ch)
	m.refused.Describe(ch)
	m.proposed.Describe(ch)
	m.planned.Describe(ch)
	m.placed.Describe(ch)
	m.ran.Describe(ch)
	for _, d := range []*prometheus.Desc{
		infoDesc, leaderDesc, ledDesc, termDesc, appliedDesc, votersDesc, storeDesc, svidDesc, sessionsDesc, streamsDesc,
		nodesDesc, instancesDesc, workloadsDesc, pendingDesc,
	} {
		ch <- d
	}
}

func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.requests.Collect(ch)
	m.took.Collect(ch)
	m.refused.Collect(ch)
	m.proposed.Collect(ch)
	m.planned.Collect(ch)
	m.placed.Collect(ch)
	m.ran.Collect(ch)
	s := m.s
	if s == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	view := s.store.Snapshot()
	gauge(infoDesc, 1, s.cfg.Version)
	gauge(leaderDesc, yes(s.consensus.IsLeader()))
	_, led := s.leaderRef()
	gauge(ledDesc, yes(led))
	gauge(termDesc, float64(s.consensus.Term()))
	gauge(appliedDesc, float64(view.Index()))
	if voters, err := s.consensus.Voters(); err == nil {
		gauge(votersDesc, float64(len(voters)))
	}
	gauge(storeDesc, yes(s.consensus.StoreFailure() != ""))
	if svid, err := s.source.GetX509SVID(); err == nil {
		gauge(svidDesc, float64(svid.Certificates[0].NotAfter.Unix()))
	}
	gauge(sessionsDesc, float64(len(s.sessions.peek())))
	gauge(streamsDesc, float64(s.streams.count()))

	phases := map[string]int{}
	for _, i := range view.Instances(nil) {
		phases[i.Status.Phase.String()]++
	}
	for p := fleet.InstanceAssigned; p <= fleet.InstanceRejected; p++ {
		gauge(instancesDesc, float64(phases[p.String()]), p.String())
	}
	stopping := 0
	all := view.Workloads(nil, "")
	for _, w := range all {
		if w.Stopping {
			stopping++
		}
	}
	gauge(workloadsDesc, float64(len(all)-stopping), "wanted")
	gauge(workloadsDesc, float64(stopping), "stopping")

	if s.leader.Term() == 0 {
		return
	}
	states := map[string]int{}
	for _, n := range view.Nodes(nil) {
		if v, ok := s.leader.View(n); ok {
			states[v.State.String()]++
		}
	}
	for st := fleet.NodeReady; st <= fleet.NodeEnrolled; st++ {
		gauge(nodesDesc, float64(states[st.String()]), st.String())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for reason, n := range m.pending {
		gauge(pendingDesc, float64(n), reason)
	}
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// unaryMeter counts a call by its method, which has a rule or is "other".
func (m *Metrics) unaryMeter(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	begun := time.Now()
	resp, err := handler(ctx, req)
	method := known(info.FullMethod)
	m.requests.WithLabelValues(method, status.Code(err).String()).Inc()
	m.took.WithLabelValues(method).Observe(time.Since(begun).Seconds())
	return resp, err
}

func (m *Metrics) streamMeter(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(srv, stream)
	m.requests.WithLabelValues(known(info.FullMethod), status.Code(err).String()).Inc()
	return err
}

func known(method string) string {
	if _, ok := rules[method]; ok {
		return short(method)
	}
	return "other"
}

var _ interface {
	prometheus.Collector
	consensus.Meter
} = (*Metrics)(nil)
