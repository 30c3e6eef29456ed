package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const proposals = 200

const aboutPropose = `
One write of a lone server, acknowledged when it is on disk and applied, one after the
other.`

// benchPropose measures one acknowledged write of a lone server on disk, one
// after the other, against writing and syncing the same bytes to a file.
func benchPropose(ctx context.Context, _ settings, out *result) error {
	dir, err := os.MkdirTemp(".", ".demo-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	_, transport := raft.NewInmemTransport("s1")
	store := state.NewStore()
	node, err := consensus.Open(consensus.Config{
		ServerID: "s1", ClusterID: "bench", Dir: filepath.Join(dir, "raft"), Address: "s1",
		Transport: transport, Store: store, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if err := node.Bootstrap(); err != nil {
		return errors.Join(err, node.Close())
	}
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- node.Run(runCtx) }()
	defer func() { cancel(); <-done }()
	lead, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	for !node.IsLeader() || node.VerifyRead(lead) != nil {
		select {
		case <-lead.Done():
			return fmt.Errorf("no leadership: %w", lead.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	took := make([]time.Duration, 0, proposals)
	for i := range proposals {
		cmd := &redoubtv1.Command{Id: fmt.Sprintf("bench-%d-%s", i, rand.Text()), Operations: []*redoubtv1.Operation{{}}}
		begun := time.Now()
		// The operation is empty and is refused; what is measured is that the
		// log entry is on disk and applied.
		if _, err := node.Propose(ctx, cmd); err != nil {
			return err
		}
		took = append(took, time.Since(begun))
	}
	bound, err := fsync(filepath.Join(dir, "raw"))
	if err != nil {
		return err
	}
	out.add(against("one acknowledged write, median", ms(median(took)), "ms", "write and fsync of 256 bytes", ms(bound)))
	return nil
}

func fsync(path string) (time.Duration, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var took []time.Duration
	buf := make([]byte, 256)
	for range proposals {
		begun := time.Now()
		if _, err := f.Write(buf); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begun))
	}
	return median(took), nil
}

func median(ds []time.Duration) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	return sortedCopy(ds)[len(ds)/2]
}

func sortedCopy(ds []time.Duration) []time.Duration { return slices.Sorted(slices.Values(ds)) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
