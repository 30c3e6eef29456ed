package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
	"redoubt.dev/redoubt/agent/registry"
)

// isTorn tells whether another try may bring more.
func isTorn(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	var network net.Error
	switch {
	case errors.Is(err, errRefused), errors.Is(err, registry.ErrLimited), errors.Is(err, registry.ErrDocument), errors.Is(err, registry.ErrStalled):
		return false
	case errors.As(err, &status):
		return status.StatusCode >= 500
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	}
	return errors.As(err, &network) && network.Timeout()
}

// lied tells whether what came is not what was announced.
func lied(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unexpected commit") || strings.Contains(text, "expected size") || strings.Contains(text, "wrong digest")
}

// pullError says what the registry answered and what to do about it. Of what
// the registry itself wrote, nothing is passed on.
func (d *Driver) pullError(ctx context.Context, ref image.Reference, a *access, err error) error {
	host, source := a.from()
	if host == "" {
		host = ref.Host
	}
	says := func(text string) error {
		return fmt.Errorf("image %s: %w: %s", ref.Name, driver.ErrImage, text)
	}
	layout := "or load it on the node as an OCI layout (oci:/directory)"
	var status remoteerrors.ErrUnexpectedStatus
	code, text := 0, err.Error()
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	switch {
	case errors.Is(err, errRefused):
		return says(a.clean(strings.TrimPrefix(text, errRefused.Error()+": ")))
	case errors.Is(err, registry.ErrStalled):
		return says(fmt.Sprintf("%s: %s; what came is kept, and the next try goes on from there", ref.Host, a.clean(firstOf(text))))
	case ctx.Err() != nil:
		return fmt.Errorf("image %s: %w: the time given ran out, or nobody wants it any more: %w", ref.Name, driver.ErrImage, ctx.Err())
	case errors.Is(err, registry.ErrLimited), code == http.StatusTooManyRequests:
		return says("the registry " + ref.Host + " limits how often it may be asked (429); it is tried again later; log in, or use a mirror (hosts.toml in " + d.hostDir(ref) + ")")
	case errors.Is(err, registry.ErrPlain), errors.Is(err, registry.ErrDocument):
		return says(a.clean(firstOf(text)))
	case lied(err):
		return says("the registry " + ref.Host + " or its mirror sent a part that is not what its digest and size say; it was thrown away. Whoever runs the registry should know")
	case strings.Contains(text, "registry file"), strings.Contains(text, "registry directory"), strings.Contains(text, "credential helper"),
		strings.Contains(text, "chmod "), strings.Contains(text, "chown "), strings.Contains(text, "config.json"):
		return says("this node's own settings for registries: " + a.clean(lastOf(text)))
	case code == http.StatusUnauthorized || errdefs.IsUnauthorized(err) || strings.Contains(text, "no basic auth credentials") || strings.Contains(text, "authorization failed") || strings.Contains(text, "pull access denied") || strings.Contains(text, "401 Unauthorized"):
		if source != "" {
			return says(fmt.Sprintf("%s refuses the login that %s gives (401), or there is no such image: put the right one there", host, source))
		}
		return says(fmt.Sprintf("there is no such image, or %s wants a login (401): on the node, put one into %s, docker's config.json format, mode 0600", host, d.credentialsPath()))
	case code == http.StatusForbidden || strings.Contains(text, "403 Forbidden"):
		who := "who is not logged in; put a login into " + d.credentialsPath() + " on the node"
		if source != "" {
			who = "the login that " + source + " gives; ask the registry's owner for the right to pull it"
		}
		return says(fmt.Sprintf("%s does not allow it (403) to %s", host, who))
	case strings.Contains(text, " byte manifest for "): // containerd's own bound
		return says(fmt.Sprintf("the registry %s has a manifest for it that is larger than the %d bytes that are read", ref.Host, image.MaxManifest))
	case errdefs.IsNotFound(err) || code == http.StatusNotFound:
		return says("the registry " + ref.Host + " answers that it is not there (404); check the name and the tag, " + layout)
	case code >= 500:
		return says(fmt.Sprintf("the registry %s is in trouble (%d); it is tried again later", ref.Host, code))
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return says("that registry speaks plain HTTP: start the agent with --insecure-registry " + ref.Host + " if that is meant")
	case strings.Contains(text, "certificate signed by unknown authority"), strings.Contains(text, "x509:"):
		return says(a.clean(lastOf(text)) + "; if its root is private, put `ca = \"FILE\"` into " + d.hostDir(ref) + "/hosts.toml on the node")
	case strings.Contains(text, "no such host"), strings.Contains(text, "connection refused"), strings.Contains(text, "i/o timeout"), strings.Contains(text, "network is unreachable"), strings.Contains(text, "no route to host"):
		return says(a.clean(lastOf(text)) + "; the registry cannot be reached from this node: check its name, the network and DNS, " + layout)
	}
	return says(a.clean(text) + "; check the name and the tag, " + layout)
}

// firstOf drops what a cause was wrapped around.
func firstOf(text string) string {
	if i := strings.Index(text, " ("); i > 0 {
		return text[:i]
	}
	return text
}

// lastOf drops the steps that led to a network's error, which name addresses
// at length.
func lastOf(text string) string {
	for _, mark := range []string{"\": ", "failed to authorize: ", "failed to do request: "} {
		if i := strings.LastIndex(text, mark); i >= 0 {
			return text[i+len(mark):]
		}
	}
	return text
}

func (d *Driver) credentialsPath() string {
	if d.cfg.Registries == "" {
		return "config.json of --registry-dir"
	}
	return string(d.cfg.Registries) + "/config.json"
}

func (d *Driver) hostDir(ref image.Reference) string {
	if d.cfg.Registries == "" {
		return "a directory " + ref.Host + " of --registry-dir"
	}
	return string(d.cfg.Registries) + "/" + ref.Host
}
