package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
)

// EnsureImage implements driver.Driver.
func (d *Driver) EnsureImage(ctx context.Context, name, policy string, progress driver.Progress) (string, error) {
	ref, err := image.Parse(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", driver.ErrImage, err)
	}
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	switch policy {
	case "":
		policy = driver.PullIfNotPresent
	case driver.PullIfNotPresent, driver.PullAlways, driver.PullNever:
	default:
		return "", fmt.Errorf("image %s: pull policy %q is none of %s, %s, %s", ref.Name, policy, driver.PullIfNotPresent, driver.PullAlways, driver.PullNever)
	}
	ctx = namespaces.WithNamespace(ctx, d.cfg.namespace())
	img, err := d.client.GetImage(ctx, ref.Name)
	switch {
	case err == nil && (policy != driver.PullAlways || ref.Kind == image.Registry && ref.Digest != ""):
		// A carried image is as new as the agent; it may have been replaced
		// with it.
		if ref.Kind != image.Carried || d.carriedIsCurrent(ref, img) {
			if complete, err := d.complete(ctx, img); err == nil && complete {
				progress("unpack", 0, 0)
				return img.Target().Digest.String(), d.unpack(ctx, img)
			}
		}
	case err == nil, errdefs.IsNotFound(err):
		if policy == driver.PullNever && ref.Kind == image.Registry {
			return "", fmt.Errorf("image %s is not on this node, and its pull policy is Never: load it there or use %s: %w", ref.Name, driver.PullIfNotPresent, driver.ErrImage)
		}
	default:
		return "", fmt.Errorf("image %s: %w: %w", ref.Name, driver.ErrUnavailable, err)
	}
	switch ref.Kind {
	case image.Registry:
		img, err = d.pull(ctx, ref, progress)
	case image.Layout:
		img, err = d.load1(ctx, ref, ref.Dir, ref.Tag, progress)
	case image.Carried:
		img, err = d.carried(ctx, ref, progress)
	}
	if err != nil {
		return "", err
	}
	progress("unpack", 0, 0)
	if err := d.unpack(ctx, img); err != nil {
		return "", err
	}
	return img.Target().Digest.String(), nil
}

// complete tells whether all blobs of img are still there.
func (d *Driver) complete(ctx context.Context, img containerd.Image) (bool, error) {
	ok, _, _, missing, err := images.Check(ctx, d.client.ContentStore(), img.Target(), img.Platform())
	return ok && len(missing) == 0, err
}

func (d *Driver) carried(ctx context.Context, ref image.Reference, progress driver.Progress) (containerd.Image, error) {
	path, ok := d.cfg.Carried[ref.Name]
	if !ok {
		var have []string
		for name := range d.cfg.Carried {
			have = append(have, name)
		}
		slices.Sort(have)
		return nil, fmt.Errorf("image %s is not carried by this agent; it carries %q: %w", ref.Name, have, driver.ErrImage)
	}
	return d.load1(ctx, ref, path, "", progress)
}

// carriedIsCurrent tells whether img is what the archive holds now.
func (d *Driver) carriedIsCurrent(ref image.Reference, img containerd.Image) bool {
	layout, err := image.OpenLayout(d.cfg.Carried[ref.Name])
	if err != nil {
		return true // what is there is better than nothing
	}
	defer layout.Close()
	desc, _, err := layout.Resolve("", platforms.Default().Match)
	return err != nil || desc.Digest == img.Target().Digest
}

// load1 copies one image of an OCI layout into the daemon, which verifies each
// blob against its digest.
func (d *Driver) load1(ctx context.Context, ref image.Reference, path, tag string, progress driver.Progress) (containerd.Image, error) {
	layout, err := image.OpenLayout(path)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
	}
	defer layout.Close()
	desc, manifest, err := layout.Resolve(tag, platforms.Default().Match)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
	}
	if manifest.Config.Size > image.MaxConfig {
		return nil, fmt.Errorf("image %s: a config of %d bytes is larger than the %d that are read: %w", ref.Name, manifest.Config.Size, image.MaxConfig, driver.ErrImage)
	}
	// A lease keeps the blobs from being collected until the image names them.
	ctx, done, err := d.client.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Name, err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()

	children := slices.Concat([]ocispec.Descriptor{manifest.Config}, manifest.Layers)
	var total, copied int64
	for _, c := range children {
		total += c.Size
	}
	for _, c := range children {
		if err := d.copyBlob(ctx, layout, c); err != nil {
			return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
		}
		copied += c.Size
		progress("load", copied, total)
	}
	gc := map[string]string{"containerd.io/gc.ref.content.config": manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		gc[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	if err := d.copyBlob(ctx, layout, desc, content.WithLabels(gc)); err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
	}
	// No annotation of the layout comes along.
	target := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return d.name(ctx, ref.Name, target)
}

func (d *Driver) copyBlob(ctx context.Context, layout *image.LayoutFiles, desc ocispec.Descriptor, opts ...content.Opt) error {
	r, err := layout.Blob(desc.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	err = content.WriteBlob(ctx, d.client.ContentStore(), "redoubt-"+desc.Digest.String(), io.LimitReader(r, desc.Size+1), desc, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	return nil
}

// name makes or moves an image name.
func (d *Driver) name(ctx context.Context, name string, target ocispec.Descriptor) (containerd.Image, error) {
	img := images.Image{Name: name, Target: target}
	made, err := d.client.ImageService().Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		made, err = d.client.ImageService().Update(ctx, img, "target")
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: note its name: %w", name, err)
	}
	return containerd.NewImage(d.client, made), nil
}

// pull fetches from a registry.
func (d *Driver) pull(ctx context.Context, ref image.Reference, progress driver.Progress) (containerd.Image, error) {
	plain := func(host string) (bool, error) {
		return image.Loopback(host) || slices.Contains(d.cfg.Insecure, host), nil
	}
	// A transport of its own for each pull: connections end with it.
	transport := docker.DefaultHTTPTransport(nil)
	transport.ResponseHeaderTimeout = 30 * time.Second
	defer transport.CloseIdleConnections()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithPlainHTTP(plain),
			docker.WithClient(&http.Client{Transport: transport}),
		),
	})
	watch := newWatcher(d, progress)
	following, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { watch.follow(following) })
	img, err := d.client.Pull(ctx, ref.Name,
		containerd.WithResolver(resolver),
		containerd.WithPlatformMatcher(platforms.Default()),
		containerd.WithImageHandlerWrapper(watch.handler),
		// No annotation that a registry sends becomes a label of ours.
		containerd.WithChildLabelMap(images.ChildGCLabels),
	)
	stop()
	wg.Wait()
	if err != nil {
		return nil, d.pullError(ctx, ref, err)
	}
	return img, nil
}

// pullError says what the registry answered and what to do about it.
func (d *Driver) pullError(ctx context.Context, ref image.Reference, err error) error {
	remedy := "check the name and the tag, or load it on the node as an OCI layout (oci:/directory)"
	text := err.Error()
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case ctx.Err() != nil:
		remedy = "the time given ran out; try again or allow more"
	case errors.As(err, &status) && status.StatusCode == http.StatusTooManyRequests:
		remedy = "the registry limits how often it may be asked; wait, or use a mirror"
	case strings.Contains(text, "401") || strings.Contains(text, "403") || strings.Contains(text, "authorization failed") || strings.Contains(text, "denied"):
		remedy = "it does not exist, or the registry wants a login, which this version cannot give: " + remedy
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		remedy = "that registry speaks plain HTTP: list " + ref.Host + " as insecure on the agent if that is meant"
	case strings.Contains(text, "no such host"), strings.Contains(text, "connection refused"), strings.Contains(text, "i/o timeout"), strings.Contains(text, "network is unreachable"):
		remedy = "the registry cannot be reached from this node: check its name, the network and DNS, or load the image as an OCI layout (oci:/directory)"
	case errdefs.IsNotFound(err):
		text = "the registry " + ref.Host + " answers that it is not there (404)"
	}
	return fmt.Errorf("image %s: %w: %s; %s", ref.Name, driver.ErrImage, text, remedy)
}

// watcher refuses documents that are too large and adds up progress.
type watcher struct {
	d        *Driver
	progress driver.Progress

	mu    sync.Mutex
	sizes map[string]int64 // digest → size of what the image consists of
	last  int64
}

func newWatcher(d *Driver, progress driver.Progress) *watcher {
	return &watcher{d: d, progress: progress, sizes: map[string]int64{}}
}

func (w *watcher) handler(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		limit := int64(0)
		switch {
		case images.IsManifestType(desc.MediaType), images.IsIndexType(desc.MediaType):
			limit = image.MaxManifest
		case images.IsConfigType(desc.MediaType):
			limit = image.MaxConfig
		}
		if limit > 0 && desc.Size > limit {
			return nil, fmt.Errorf("%s of %d bytes is larger than the %d that are read", desc.MediaType, desc.Size, limit)
		}
		w.mu.Lock()
		w.sizes[desc.Digest.String()] = desc.Size
		w.mu.Unlock()
		return next.Handle(ctx, desc)
	})
}

// follow reports until ctx ends, and then once more.
func (w *watcher) follow(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			w.report(context.WithoutCancel(ctx))
			return
		case <-tick.C:
			w.report(ctx)
		}
	}
}

func (w *watcher) report(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	w.mu.Lock()
	sizes := make(map[string]int64, len(w.sizes))
	var total int64
	for k, v := range w.sizes {
		sizes[k], total = v, total+v
	}
	w.mu.Unlock()
	store := w.d.client.ContentStore()
	active, err := store.ListStatuses(ctx)
	if err != nil {
		return
	}
	var done int64
	for k, size := range sizes {
		i := slices.IndexFunc(active, func(s content.Status) bool { return strings.HasSuffix(s.Ref, k) })
		if i >= 0 {
			done += active[i].Offset
			continue
		}
		// Neither being written nor there: it has yet to begin.
		if ok, err := content.Exists(ctx, store, ocispec.Descriptor{Digest: digest.Digest(k)}); err == nil && ok {
			done += size
		}
	}
	if done = max(done, w.last); total > 0 {
		w.last = done
		w.progress("pull", min(done, total), total)
	}
}
