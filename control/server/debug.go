package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// maxDebugFile bounds one file of a bundle, bytes; the rest is cut.
const maxDebugFile = 8 << 20

// CollectDebug sends what helps to understand this server. Nothing of the state
// is in it but numbers and the names of servers: specs hold what users put into
// variables. The log and Raft's words hold no secret, which is a rule of the
// whole code.
func (s *fleetAPI) CollectDebug(_ *redoubtv1.CollectDebugRequest, stream grpc.ServerStreamingServer[redoubtv1.CollectDebugResponse]) error {
	select {
	case s.snapshots <- struct{}{}:
		defer func() { <-s.snapshots }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d snapshots or bundles are being sent already: wait until one is done", maxSnapshots)
	}
	for _, f := range []struct {
		name string
		make func(*bytes.Buffer) error
	}{
		{"info.json", s.debugInfo},
		{"goroutines.txt", func(b *bytes.Buffer) error { return pprof.Lookup("goroutine").WriteTo(b, 1) }},
		{"heap.pprof", func(b *bytes.Buffer) error { return pprof.Lookup("heap").WriteTo(b, 0) }},
		{"metrics.txt", s.debugMetrics},
		{"raft.json", func(b *bytes.Buffer) error { return indented(b, s.consensus.Stats()) }},
		{"log.txt", func(b *bytes.Buffer) error {
			if s.logTail != nil {
				b.Write(s.logTail())
			}
			return nil
		}},
	} {
		var b bytes.Buffer
		if err := f.make(&b); err != nil {
			fmt.Fprintf(&b, "\ncannot be collected: %v\n", err)
		}
		data := b.Bytes()
		data = data[:min(len(data), maxDebugFile)]
		for first := true; first || len(data) > 0; first = false {
			n := min(len(data), snapshotChunk)
			if err := stream.Send(&redoubtv1.CollectDebugResponse{Name: f.name, Data: data[:n]}); err != nil {
				return err
			}
			data = data[n:]
		}
	}
	return nil
}

func (s *fleetAPI) debugInfo(b *bytes.Buffer) error {
	view := s.store.Snapshot()
	leader, _ := s.leaderRef()
	info := map[string]any{
		"server": s.cfg.ID, "version": s.cfg.Version, "feature_level": state.FeatureLevel,
		"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH, "cpus": runtime.NumCPU(),
		"now": time.Now().UTC(), "up": time.Since(s.began).Round(time.Second).String(),
		"cluster": view.Cluster().ID, "trust_domain": view.Cluster().TrustDomain, "index": view.Index(),
		"leader": leader.ID, "store": s.consensus.StoreFailure(),
		"nodes": len(view.Nodes(nil)), "workloads": len(view.Workloads(nil, "")), "instances": len(view.Instances(nil)),
		"sessions": len(s.sessions.peek()), "heartbeat": s.cfg.Timing.Heartbeat.String(), "fresh_for": s.cfg.Timing.FreshFor.String(),
		"svid_ttl": s.cfg.NodeTTL.String(), "user_ttl": s.cfg.UserTTL.String(), "renew_window": s.cfg.RenewWindow.String(),
	}
	if svid, err := s.source.GetX509SVID(); err == nil {
		info["svid_expires"] = svid.Certificates[0].NotAfter.UTC()
	}
	if members, err := s.consensus.Members(); err == nil {
		info["members"] = members
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		modules := map[string]string{}
		for _, m := range build.Deps {
			modules[m.Path] = m.Version
		}
		info["modules"] = modules
	}
	return indented(b, info)
}

func (s *fleetAPI) debugMetrics(b *bytes.Buffer) error {
	reg := prometheus.NewRegistry()
	if err := reg.Register(s.metrics); err != nil {
		return err
	}
	families, err := reg.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(b, f); err != nil {
			return err
		}
	}
	return nil
}

func indented(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
