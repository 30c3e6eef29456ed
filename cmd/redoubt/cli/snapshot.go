package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/control/archive"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) snapshotSaveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "save FILE", Short: "Save the fleet's whole state as of now", Args: names(1, 1, "the file to write"),
		Long: "Saves the fleet's whole state as of one moment: workloads, nodes, assignments,\nroles, join tokens' hashes, the servers' certificates and the sites' gossip keys.\nNo private key is in it, but the gossip keys are secrets: the file is readable by\nyou alone; keep it so. What else a recovery needs: docs/recovery.md.",
	}
	a.client(c)
	stale := c.Flags().Bool("stale", false, "take what the asked server has, where there is no leader to ask what is current")
	c.RunE = func(c *cobra.Command, args []string) error {
		if dir := filepath.Dir(args[0]); !exists(dir) {
			return fmt.Errorf("save a snapshot: there is no directory %s; make it first", dir)
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			meta, err := saveSnapshot(ctx, f, *stale, args[0])
			if err != nil {
				return fmt.Errorf("save a snapshot: %w", err)
			}
			_, err = fmt.Fprintf(a.Stdout, "%s saved: log index %d, %sB of state, SHA-256 %s\n", args[0], meta.Index, size(meta.Size), meta.SHA256)
			return err
		})
	}
	return c
}

// saveSnapshot writes path in one step: it is whole or not there.
func saveSnapshot(ctx context.Context, f redoubtv1.FleetServiceClient, stale bool, path string) (_ archive.Meta, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.SaveSnapshot(ctx, &redoubtv1.SaveSnapshotRequest{Stale: stale})
	if err != nil {
		return archive.Meta{}, err
	}
	first, err := stream.Recv()
	if err != nil {
		return archive.Meta{}, err
	}
	d := first.GetDescription()
	if d == nil {
		return archive.Meta{}, errors.New("the server sends no description of its snapshot")
	}
	meta := archive.Meta{
		ClusterID: d.GetClusterId(), TrustDomain: d.GetTrustDomain(), Index: d.GetIndex(), Term: d.GetTerm(),
		Server: d.GetServer(), Version: d.GetVersion(), FeatureLevel: d.GetFeatureLevel(),
		Created: d.GetCreated().AsTime().Truncate(time.Second), Size: int64(d.GetSize()), SHA256: hex.EncodeToString(d.GetSha256()),
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return meta, err
	}
	defer func() {
		tmp.Close()
		os.Remove(tmp.Name())
	}()
	if err := archive.Write(tmp, meta, &snapshotReader{stream: stream}); err != nil {
		return meta, err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return meta, err
	}
	return meta, os.Rename(tmp.Name(), path)
}

// snapshotReader reads what a server streams.
type snapshotReader struct {
	stream grpc.ServerStreamingClient[redoubtv1.SaveSnapshotResponse]
	rest   []byte
}

func (r *snapshotReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Check a snapshot file, and say what it holds", Args: names(1, 1, "a snapshot file"),
		Long: "Reads a file of `redoubt operator snapshot save` to its end, holds it against its\nSHA-256, and says what it holds. It needs no fleet.",
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			store := state.NewStore()
			meta, err := archive.Read(file, state.FeatureLevel, func(r io.Reader) error { return store.FSM().Restore(io.NopCloser(r)) })
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			v := store.Snapshot()
			var servers []string
			for _, s := range v.Servers(nil) {
				servers = append(servers, s.ID)
			}
			for _, row := range [][2]string{
				{"Fleet", meta.ClusterID + " (" + meta.TrustDomain + ")"},
				{"Saved", meta.Created.UTC().Format(time.RFC3339) + " by " + meta.Server + ", version " + meta.Version},
				{"Log index", fmt.Sprintf("%d, term %d", meta.Index, meta.Term)},
				{"Servers", strings.Join(servers, ", ")},
				{"Holds", fmt.Sprintf("%d nodes, %d workloads, %d instances", len(v.Nodes(nil)), len(v.Workloads(nil, "")), len(v.Instances(nil)))},
				{"SHA-256", meta.SHA256 + " of " + size(meta.Size) + "B, as written"},
			} {
				if _, err := fmt.Fprintf(a.Stdout, "%-10s %s\n", row[0], row[1]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// recoverFlags are those of the two verbs that begin a fleet again.
func recoverFlags(c *cobra.Command) *control.RecoverConfig {
	cfg := &control.RecoverConfig{Version: Version, Log: slog.New(slog.DiscardHandler)}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "data-dir", DefaultServerDir, "the server's data `DIR`ectory; the server must not run")
	f.BoolVar(&cfg.DryRun, "dry-run", false, "say what would be done, and change nothing")
	f.BoolVar(&cfg.Force, "force", false, "go on though something answers at another server's address")
	return cfg
}

func (a *app) snapshotRestoreCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "restore FILE", Short: "Begin the fleet again from a snapshot, on a stopped server", Args: names(1, 1, "a snapshot file"),
		Long: "Gives a stopped server the state of a snapshot file and makes it the fleet's only\nserver; all others must be stopped for good and join anew. What changed after the\nsnapshot is lost, except on nodes: their agents keep what runs and is still\nwanted. The former log is kept beside the new one.\n\nThe server must be of the snapshot's fleet: its ca/, identity/ and server.json, or\na copy of them, are enough. Step by step: docs/recovery.md.",
	}
	cfg := recoverFlags(c)
	c.Flags().BoolVar(&cfg.NewFleet, "new-fleet", false, "the authorities of the snapshot's fleet are lost: take its workloads and roles into this new fleet, where nodes enrol anew")
	c.RunE = func(c *cobra.Command, args []string) error {
		file, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer file.Close()
		r, meta, err := control.Restore(c.Context(), *cfg, file)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return a.recovered(*cfg, r, fmt.Sprintf("the snapshot of %s", meta.Created.UTC().Format(time.RFC3339)))
	}
	return c
}

func (a *app) serverRecoverCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "recover", Short: "Go on with one server after a majority was lost for good", Args: cobra.NoArgs,
		Long: "Makes this stopped server the fleet's only one, with everything that it knows.\nFor when a majority of servers is lost for good: the others must be stopped for\ngood first and join anew, with empty data directories. A change that was just\nbeing made may be lost, or come back. The former log is kept beside the new one.\nStep by step: docs/recovery.md.",
	}
	cfg := recoverFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		r, err := control.Recover(c.Context(), *cfg)
		if err != nil {
			return err
		}
		return a.recovered(*cfg, r, "its own log")
	}
	return c
}

func (a *app) recovered(cfg control.RecoverConfig, r control.Recovered, from string) error {
	done, would := "goes on", ""
	if cfg.DryRun {
		done, would = "would go on", " (nothing was changed)"
	}
	if _, err := fmt.Fprintf(a.Stdout, "Fleet %s %s with server %s alone, from %s%s.\n", r.ClusterID, done, r.Server, from, would); err != nil {
		return err
	}
	a.say("  state      log index %d: %d nodes, %d workloads", r.From, r.Nodes, r.Workloads)
	if r.Replaced > r.From {
		a.say("  given up   what this server had up to log index %d", r.Replaced)
	}
	if r.Kept != "" {
		a.say("  former log %s (holds secrets; delete it when all is well)", r.Kept)
	}
	if len(r.Forgotten) > 0 {
		a.say("  forgotten  %s: delete their data directories, then join them anew", strings.Join(r.Forgotten, ", "))
	}
	if !cfg.DryRun {
		a.say("Start it:  redoubt server --data-dir %s", cfg.Dir)
	}
	return nil
}
