package containerd

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"

	"redoubt.dev/redoubt/agent/image"
	"redoubt.dev/redoubt/agent/registry"
)

// access is one pull's way to its registry and the registry's mirrors.
type access struct {
	traffic *registry.Traffic

	mu          sync.Mutex
	transports  []*http.Transport
	credentials []registry.Credentials // that were given out; to keep them out of messages
	askedFor    map[string]string      // host → where its credentials came from, "" if there were none
}

// resolver makes containerd's resolver from the node's directory of
// registries. Connections end with close.
func (d *Driver) resolver(ctx context.Context, waits func(host string, wait time.Duration)) (remotes.Resolver, *access) {
	a := &access{traffic: registry.NewTraffic(d.cfg.Traffic, waits), askedFor: map[string]string{}}
	insecure := func(host string) bool { return image.Loopback(host) || slices.Contains(d.cfg.Insecure, host) }
	find := func(scheme string) docker.RegistryHosts {
		return config.ConfigureHosts(ctx, config.HostOptions{
			HostDir:       d.cfg.Registries.Host,
			DefaultScheme: scheme,
			Credentials: func(host string) (string, string, error) {
				c, err := d.cfg.Registries.Credentials(ctx, host)
				a.mu.Lock()
				defer a.mu.Unlock()
				a.askedFor[host] = c.From
				if c.From != "" {
					a.credentials = append(a.credentials, c)
				}
				return c.User, c.Secret, err
			},
			UpdateClient: func(c *http.Client) error {
				c.CheckRedirect = registry.Redirect
				if t, ok := c.Transport.(*http.Transport); ok {
					t.ResponseHeaderTimeout = 30 * time.Second
					t.MaxResponseHeaderBytes = 1 << 20
					a.mu.Lock()
					a.transports = append(a.transports, t)
					a.mu.Unlock()
				}
				return nil
			},
		})
	}
	hosts := func(host string) ([]docker.RegistryHost, error) {
		scheme := ""
		if slices.Contains(d.cfg.Insecure, host) {
			scheme = "http"
		}
		found, err := find(scheme)(host)
		if err != nil {
			return nil, err
		}
		// A file may name addresses in plain HTTP. What a registry leads to may
		// not be one.
		plain := func(h string) bool {
			return insecure(h) || slices.ContainsFunc(found, func(r docker.RegistryHost) bool {
				return r.Scheme == "http" && strings.EqualFold(r.Host, h)
			})
		}
		seen := map[*http.Client]bool{}
		for _, r := range found {
			if !seen[r.Client] {
				seen[r.Client] = true
				r.Client.Transport = a.traffic.Over(r.Client.Transport, plain)
			}
		}
		return found, nil
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts}), a
}

func (a *access) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.transports {
		t.CloseIdleConnections()
	}
}

// clean takes what was given out, out of a message.
func (a *access) clean(text string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return registry.Clean(text, a.credentials...)
}

// from is where the credentials for any of the hosts came from, and the host
// that asked for some.
func (a *access) from() (host, source string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for h, s := range a.askedFor {
		if host == "" || s != "" {
			host, source = h, s
		}
	}
	return host, source
}
