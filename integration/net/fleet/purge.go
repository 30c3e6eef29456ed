package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"redoubt.dev/redoubt/integration/net/topology"
)

// AgentRemove takes away what a node has on the host.
func (f *Fleet) AgentRemove(node string) []string {
	return []string{"agent", "remove", "--data-dir", f.Path(node), "--runtimes-dir", f.Path("runtimes")}
}

// purge has each agent's own code remove what the node holds on this host. The
// agents must have ended.
func (f *Fleet) purge(ctx context.Context, plan topology.Plan, nodes []string) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		if !exists(f.File(node)) || !exists(filepath.Join("/run/netns", plan.Namespace(node))) {
			continue // it never got so far, or is half gone: force does the rest
		}
		wg.Go(func() {
			out, err := f.Run(ctx, node, f.AgentRemove(node)...)
			f.note(node, out.Stderr)
			switch {
			case err != nil:
			case out.Code != 0:
				err = errors.New(strings.TrimSpace(out.Stderr))
			}
			if err != nil {
				errs[i] = fmt.Errorf("remove what node %s has on this host: %w", node, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// note adds to a daemon's log.
func (f *Fleet) note(name, text string) {
	log, err := os.OpenFile(f.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer log.Close()
	_, _ = log.WriteString(text)
}
