package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// newHealth makes what asks the instances of a host.
func newHealth(host Host, log *slog.Logger) *health.Monitor {
	dial := host.Dial
	if dial == nil {
		dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", to.String())
		}
	}
	return health.New(health.Deps{
		Exec: host.Driver.Exec, Dial: dial, Log: log,
		Answers: func(ctx context.Context, id driver.ID) bool {
			list, err := host.Driver.List(ctx)
			return err == nil && slices.ContainsFunc(list, func(c driver.Container) bool { return c.ID == id && c.State == driver.StateRunning })
		},
	})
}

// readProbes fills in how a container is asked for its health.
func readProbes(out *health.Probes, c *redoubtv1.Container) error {
	for _, p := range []struct {
		name string
		from *redoubtv1.Probe
		to   **health.Probe
	}{
		{"startupProbe", c.GetStartupProbe(), &out.Startup},
		{"livenessProbe", c.GetLivenessProbe(), &out.Liveness},
		{"readinessProbe", c.GetReadinessProbe(), &out.Readiness},
	} {
		if p.from == nil {
			continue
		}
		probe, err := readProbe(p.from, c)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		*p.to = probe
	}
	return nil
}

// readProbe takes the defaults of a Kubernetes PodSpec.
func readProbe(p *redoubtv1.Probe, c *redoubtv1.Container) (*health.Probe, error) {
	seconds := func(v *uint32, def uint32) time.Duration { return time.Duration(whole(v, def)) * time.Second }
	out := &health.Probe{
		InitialDelay: seconds(p.InitialDelaySeconds, 0), Period: max(seconds(p.PeriodSeconds, 10), time.Second),
		Timeout: max(seconds(p.TimeoutSeconds, 1), time.Second),
		Success: int(max(whole(p.SuccessThreshold, 1), 1)), Failure: int(max(whole(p.FailureThreshold, 3), 1)),
	}
	var err error
	switch {
	case p.GetExec() != nil:
		if out.Exec = p.GetExec().GetCommand(); len(out.Exec) == 0 {
			return nil, fmt.Errorf("exec: there is no command")
		}
	case p.GetHttpGet() != nil:
		h := p.GetHttpGet()
		out.HTTP = &health.HTTP{Path: h.GetPath(), TLS: h.GetScheme() == "HTTPS"}
		if out.HTTP.Path == "" {
			out.HTTP.Path = "/"
		}
		for _, x := range h.GetHttpHeaders() {
			out.HTTP.Headers = append(out.HTTP.Headers, health.Header{Name: x.GetName(), Value: x.GetValue()})
		}
		out.HTTP.Port, err = probedPort(h.GetPort(), c)
	case p.GetTcpSocket() != nil:
		out.TCP, err = probedPort(p.GetTcpSocket().GetPort(), c)
	case p.GetGrpc() != nil:
		out.GRPC = &health.GRPC{Service: p.GetGrpc().GetService()}
		out.GRPC.Port, err = probedPort(p.GetGrpc().GetPort(), c)
	default:
		return nil, fmt.Errorf("it asks nothing that this agent knows")
	}
	return out, err
}

func whole(v *uint32, def uint32) uint32 {
	if v == nil {
		return def
	}
	return *v
}

// probedPort is a number, or the name of one of the container's ports.
func probedPort(s string, c *redoubtv1.Container) (uint16, error) {
	for _, p := range c.GetPorts() {
		if p.GetName() == s && s != "" && p.GetContainerPort() <= math.MaxUint16 {
			return uint16(p.GetContainerPort()), nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %.20q is none", s)
	}
	return uint16(n), nil
}
