package agent

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
)

// Metrics are an agent's figures. docs/metrics.md lists them all. No label is a
// name that a caller chooses.
type Metrics struct {
	starts   *prometheus.HistogramVec
	images   *prometheus.HistogramVec
	canaries *prometheus.HistogramVec
	restarts prometheus.Counter

	a *Agent // set by New; nil: it has not been made yet
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("redoubt_agent_"+name, help, labels, nil)
}

var (
	infoDesc      = desc("info", "1, of the version that runs.", "version")
	sessionDesc   = desc("session_up", "1 while a server answers this agent.")
	instancesDesc = desc("instances", "Instances on this node by phase.", "phase")
	restartsDesc  = desc("instance_restarts", "Restarts of the instances that are on this node now, all together.")
	runtimesDesc  = desc("runtimes", "1, of each runtime's state as last found.", "runtime", "variant", "state")
	svidDesc      = desc("svid_expiry_timestamp_seconds", "End of this node's certificate, Unix time.")
	diskDesc      = desc("disk_full", "1 while the data directory has no room, or only its reserve.")
	logsDesc      = desc("log_bytes", "Size of the instances' logs.")
)

// instancePhases are those of an instance on a node.
var instancePhases = []store.Phase{store.Assigned, store.Starting, store.Running, store.BackOff, store.Succeeded, store.Failed, store.Stopped, store.Rejected}

// NewMetrics makes the figures of one agent.
func NewMetrics() *Metrics {
	histogram := func(name, help string, first, factor float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "redoubt_agent_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(first, factor, 9),
		}, labels)
	}
	return &Metrics{
		starts:   histogram("start_seconds", "How long a start of a container took its runtime, without the image.", 0.01, 2.5, "runtime", "outcome"),
		images:   histogram("image_seconds", "How long an image took to be startable.", 0.01, 5, "outcome"),
		canaries: histogram("canary_seconds", "How long a canary took, by what it found.", 0.05, 2.5, "runtime", "outcome"),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "redoubt_agent_restarts_total", Help: "Restarts in place of instances, since this agent started.",
		}),
	}
}

// Canary takes what a canary found, and how long it took.
func (m *Metrics) Canary(runtime isolation.Name, outcome string, took time.Duration) {
	m.canaries.WithLabelValues(string(runtime), outcome).Observe(took.Seconds())
}

// own are those that are counted as things happen.
func (m *Metrics) own() []prometheus.Collector {
	return []prometheus.Collector{m.starts, m.images, m.canaries, m.restarts}
}

func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.own() {
		c.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{infoDesc, sessionDesc, instancesDesc, restartsDesc, runtimesDesc, svidDesc, diskDesc, logsDesc} {
		ch <- d
	}
}

func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.own() {
		c.Collect(ch)
	}
	a := m.a
	if a == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(infoDesc, 1, a.cfg.Version)
	gauge(sessionDesc, yes(a.session.Connected()))
	count, restarts := map[store.Phase]int{}, uint32(0)
	for _, f := range a.store.Facts() {
		count[f.Phase]++
		restarts += f.Restarts
	}
	for _, p := range instancePhases {
		gauge(instancesDesc, float64(count[p]), string(p))
	}
	gauge(restartsDesc, float64(restarts))
	if r, ok := a.reporter.Report(); ok {
		seen := map[[3]string]bool{}
		for _, f := range r.Findings {
			labels := [3]string{string(f.Runtime), f.Variant, f.State.String()}
			if !seen[labels] {
				seen[labels] = true
				gauge(runtimesDesc, 1, labels[:]...)
			}
		}
	}
	if svid, err := a.deps.Identity.GetX509SVID(); err == nil {
		gauge(svidDesc, float64(svid.Certificates[0].NotAfter.Unix()))
	}
	gauge(diskDesc, yes(a.store.DiskFull()))
	gauge(logsDesc, float64(folderSize(a.bulk.logs)))
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// folderSize sums the files of one folder.
func folderSize(dir string) (sum int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if fi, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && fi.Mode().IsRegular() {
			sum += fi.Size()
		}
	}
	return sum
}

// meteredDriver measures starts and images.
type meteredDriver struct {
	driver.Driver
	m *Metrics
}

func (d meteredDriver) Start(ctx context.Context, spec driver.Spec) (driver.Container, error) {
	begun := time.Now()
	c, err := d.Driver.Start(ctx, spec)
	outcome := "started"
	if err != nil {
		outcome = "failed"
	}
	d.m.starts.WithLabelValues(string(spec.Runtime), outcome).Observe(time.Since(begun).Seconds())
	return c, err
}

func (d meteredDriver) EnsureImage(ctx context.Context, ref, policy string, progress driver.Progress) (string, error) {
	begun := time.Now()
	var fetched atomic.Bool
	digest, err := d.Driver.EnsureImage(ctx, ref, policy, func(stage string, done, total int64) {
		fetched.Store(true)
		if progress != nil {
			progress(stage, done, total)
		}
	})
	outcome := "present"
	switch {
	case err != nil:
		outcome = "failed"
	case fetched.Load():
		outcome = "fetched"
	}
	d.m.images.WithLabelValues(outcome).Observe(time.Since(begun).Seconds())
	return digest, err
}
