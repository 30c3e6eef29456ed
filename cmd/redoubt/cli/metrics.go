package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// metricsFlag offers metrics on a listener of its own. It is off by default, and
// never reachable from another host: nothing of a fleet is spoken in plain text
// over a network.
func metricsFlag(c *cobra.Command) *string {
	return c.Flags().String("metrics", "", "serve metrics for Prometheus at `ADDR`: 127.0.0.1:9464, or unix:/PATH (default: not at all)")
}

// withMetrics runs a daemon with its metrics served at address, if there is one.
func withMetrics(ctx context.Context, address string, run func(context.Context, prometheus.Registerer) error) error {
	if address == "" {
		return run(ctx, nil)
	}
	l, err := listenMetrics(address)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 20 * time.Second}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics at %s: %w", address, err)
		}
		return nil
	})
	// The metrics end with the daemon, however that ends.
	g.Go(func() error {
		defer server.Close()
		return run(gctx, reg)
	})
	return g.Wait()
}

func listenMetrics(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("--metrics %s: name the socket by an absolute path: unix:/run/redoubt/metrics.sock", address)
		}
		if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSocket {
			if err := os.Remove(path); err != nil { // of an earlier life
				return nil, fmt.Errorf("--metrics %s: %w", address, err)
			}
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return nil, fmt.Errorf("--metrics %s: %w", address, err)
		}
		return l, errors.Join(os.Chmod(path, 0o660))
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("--metrics %q is neither IP:PORT nor unix:/PATH", address)
	}
	if !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("--metrics %s: only a loopback address (127.0.0.1:%d) or unix:/PATH: metrics are plain HTTP, and a fleet speaks nothing in plain text over a network; let a collector on this host pass them on", address, at.Port())
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", address, err)
	}
	return l, nil
}
