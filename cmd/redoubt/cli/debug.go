package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// recentBytes of a daemon's log are kept in memory for `operator debug`.
	recentBytes = 256 << 10
	// maxBundle bounds what is taken of one server, bytes.
	maxBundle   = 64 << 20
	debugWithin = 30 * time.Second
)

// recentLog keeps the last bytes that were written to it.
type recentLog struct {
	mu   sync.Mutex
	data []byte
}

func (r *recentLog) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data = append(r.data, p...)
	if len(r.data) > 2*recentBytes { // cut now and then, not at every line
		r.data = append([]byte(nil), r.data[len(r.data)-recentBytes:]...)
	}
	return len(p), nil
}

func (r *recentLog) tail() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]byte(nil), r.data[max(0, len(r.data)-recentBytes):]...)
}

func (a *app) debugCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "debug FILE", Short: "Collect what helps to understand the servers", Args: names(1, 1, "the .tar.gz file to write"),
		Long: "Asks every server of the context for its goroutines, memory profile, metrics, the\nstate of Raft, its settings and its last log lines, and writes them into one\n.tar.gz file. A server that does not answer is named in it. No key, token or\nworkload is in it; names of servers, nodes, users and workloads are, in the log.",
	}
	a.client(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			asked, err := a.writeBundle(ctx, f.conn, args[0])
			if err != nil {
				return fmt.Errorf("collect from the servers: %w", err)
			}
			_, err = fmt.Fprintf(a.Stdout, "%s written: %s\n", args[0], asked)
			return err
		})
	}
	return c
}

// writeBundle writes path in one step, from every address of the context.
func (a *app) writeBundle(ctx context.Context, c *fleetConn, path string) (asked string, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return "", err
	}
	defer func() {
		tmp.Close()
		os.Remove(tmp.Name())
	}()
	z := gzip.NewWriter(tmp)
	t := tar.NewWriter(z)
	c.mu.Lock()
	addresses, domain := append([]string(nil), c.file.Addresses...), c.file.Bundle.TrustDomain()
	c.mu.Unlock()
	answered := 0
	var failures []error
	for _, address := range addresses {
		folder := "server-" + address + "/"
		files, err := collectDebug(ctx, c, address, identity.AuthorizeServers(domain))
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %s", address, plain(err)))
			a.say("%s does not answer: %s", address, plain(err))
			files = append(files, debugFile{"error.txt", []byte(plain(err) + "\n")})
		} else {
			answered++
		}
		for _, f := range files {
			if err := t.WriteHeader(&tar.Header{Name: folder + filepath.Base(f.name), Mode: 0o600, Size: int64(len(f.data)), ModTime: time.Now()}); err != nil {
				return "", err
			}
			if _, err := t.Write(f.data); err != nil {
				return "", err
			}
		}
	}
	if answered == 0 {
		return "", errors.Join(failures...)
	}
	if err := errors.Join(t.Close(), z.Close(), tmp.Sync(), tmp.Close()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d of %s", answered, plural(len(addresses), "server", "servers")), os.Rename(tmp.Name(), path)
}

type debugFile struct {
	name string
	data []byte
}

func collectDebug(ctx context.Context, c *fleetConn, address string, servers identity.Authorizer) ([]debugFile, error) {
	ctx, cancel := context.WithTimeout(ctx, debugWithin)
	defer cancel()
	conn, err := identity.NewConn("passthrough:///"+address, c.source, servers, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := redoubtv1.NewFleetServiceClient(conn).CollectDebug(ctx, &redoubtv1.CollectDebugRequest{})
	if err != nil {
		return nil, err
	}
	var files []debugFile
	for total := 0; ; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return files, err
		}
		if total += len(m.GetData()); total > maxBundle {
			return files, fmt.Errorf("it sends more than %d MiB", maxBundle>>20)
		}
		if n := len(files); n == 0 || files[n-1].name != m.GetName() {
			files = append(files, debugFile{name: m.GetName()})
		}
		last := &files[len(files)-1]
		last.data = append(last.data, m.GetData()...)
	}
}
