package identity

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// bundle is short for what is said often.
type bundle = x509bundle.Bundle

// WorkloadSource is a Source that a SPIFFE Workload API feeds, for example
// SPIRE's agent. It is empty until Run has had the first answer.
type WorkloadSource struct {
	MemorySource
	address string
	log     *slog.Logger
}

// WorkloadAPI returns the source for the socket that SPIFFE_ENDPOINT_SOCKET
// names, or false where that is not set.
func WorkloadAPI(log *slog.Logger) (*WorkloadSource, bool) {
	address, ok := os.LookupEnv(workloadapi.SocketEnv)
	if !ok || address == "" {
		return nil, false
	}
	return NewWorkloadSource(address, log), true
}

// NewWorkloadSource returns the source for a Workload API address such as
// "unix:///run/spire/agent.sock".
func NewWorkloadSource(address string, log *slog.Logger) *WorkloadSource {
	return &WorkloadSource{address: address, log: log}
}

// Run follows the Workload API until ctx ends. While the API is away the last
// SVID and bundles stay.
func (w *WorkloadSource) Run(ctx context.Context) error {
	err := workloadapi.WatchX509Context(ctx, (*workloadWatcher)(w), workloadapi.WithAddr(w.address))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("follow workload API at %s: %w", w.address, err)
}

// Wait blocks until there is an SVID.
func (w *WorkloadSource) Wait(ctx context.Context) error {
	for {
		changed := w.Updated()
		if _, err := w.GetX509SVID(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for an SVID from the workload API at %s: %w", w.address, context.Cause(ctx))
		case <-changed:
		}
	}
}

// workloadWatcher keeps the callbacks out of WorkloadSource's method set.
type workloadWatcher WorkloadSource

func (w *workloadWatcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	s := (*WorkloadSource)(w)
	bundles := map[spiffeid.TrustDomain]*bundle{}
	for _, b := range c.Bundles.Bundles() {
		if !b.Empty() {
			bundles[b.TrustDomain()] = b
		}
	}
	svid := c.DefaultSVID()
	if _, err := FromSPIFFE(svid.ID); err != nil {
		s.log.Error("the workload API gave an SVID that is no identity of this system", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(bundles) > 0 { // the API replaces them all, but never by nothing
		s.bundles = bundles
	}
	s.svid = svid
	s.announce()
}

func (w *workloadWatcher) OnX509ContextWatchError(err error) {
	w.log.Warn("workload API is away, the last SVID stays in use", "address", w.address, "error", err)
}
