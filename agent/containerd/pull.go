package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
)

// Bounds of one pull.
const (
	blobsAtOnce = 3
	maxLayers   = 256 // more than any snapshotter mounts
	maxIndexes  = 4   // an index in an index in …
	// tornFor is how long what came of a torn pull is kept for the next try.
	tornFor = 24 * time.Hour
	// tries of one pull, each going on where the last was torn.
	tries = 3
)

// pull fetches from a registry. What a torn pull brought stays for a day under
// a lease of its own, so that the next goes on from there; what a lying
// registry sent does not.
func (d *Driver) pull(ctx context.Context, ref image.Reference, progress driver.Progress) (containerd.Image, error) {
	lease, err := d.pullLease(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Name, err)
	}
	ctx = leases.WithLease(ctx, lease.ID)
	var img containerd.Image
	for try := 1; ; try++ {
		var again time.Duration // 0: it would bring no more
		img, again, err = d.pullOnce(ctx, ref, try, progress)
		if err == nil || ctx.Err() != nil || again == 0 || try == tries {
			break
		}
		d.log.Debug("a pull was torn; it goes on", "image", ref.Name, "err", err)
		progress("pull, torn and begun again,", 0, 0)
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	if err != nil {
		return nil, err
	}
	return img, d.endLease(ctx, lease)
}

// pullLease makes the lease of ref's pulls, or finds that of a torn one.
func (d *Driver) pullLease(ctx context.Context, ref image.Reference) (leases.Lease, error) {
	id := fmt.Sprintf("%s%x", pullLeases, sha256.Sum256([]byte(ref.Name)))
	service := d.client.LeasesService()
	lease, err := service.Create(ctx, leases.WithID(id), leases.WithLabel(labelImage, ref.Name), leases.WithExpiration(tornFor))
	if errdefs.IsAlreadyExists(err) {
		return leases.Lease{ID: id}, nil
	}
	if err != nil {
		return lease, fmt.Errorf("take a lease: %w", err)
	}
	return lease, nil
}

// Leases of pulls, and the label that says of which image.
const (
	pullLeases = "redoubt-pull-"
	labelImage = labelPrefix + "image"
)

func (d *Driver) endLease(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	ctx, cancel := d.detached(ctx, askFor)
	defer cancel()
	if err := d.client.LeasesService().Delete(ctx, lease, opts...); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("give up lease %s: %w", lease.ID, err)
	}
	return nil
}

// pullOnce tries once. If another try may bring more, it says after how long.
func (d *Driver) pullOnce(ctx context.Context, ref image.Reference, try int, progress driver.Progress) (_ containerd.Image, again time.Duration, _ error) {
	resolver, access := d.resolver(ctx, func(host string, wait time.Duration) {
		progress(fmt.Sprintf("wait %s, as %s asks, to pull", wait.Round(time.Second), host), 0, 0)
	})
	defer access.close()
	watch := newWatcher(d, progress)
	pulling, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	wg.Go(func() { watch.follow(pulling) })
	wg.Go(func() {
		if err := access.traffic.Watch(pulling); err != nil {
			stop(err)
		}
	})
	img, err := d.client.Pull(pulling, ref.Name,
		containerd.WithResolver(resolver),
		containerd.WithPlatformMatcher(platforms.Default()),
		containerd.WithImageHandlerWrapper(watch.handler),
		containerd.WithDownloadLimiter(semaphore.NewWeighted(blobsAtOnce)),
		// No annotation that a registry sends becomes a label of ours.
		containerd.WithChildLabelMap(images.ChildGCLabels),
	)
	cause := context.Cause(pulling)
	stop(nil)
	wg.Wait()
	if err == nil {
		err = d.rightPlatform(ctx, img)
		if err != nil {
			d.drop(ctx, ref.Name)
		}
	}
	if err == nil {
		return img, 0, nil
	}
	if cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	if watch.refused != nil {
		err = watch.refused // it comes first; the rest was only ended by it
	}
	if !errors.Is(err, context.Canceled) && lied(err) {
		// A part that cannot be what it should be would spoil each next try.
		d.abort(ctx, watch.digests())
	}
	if isTorn(err) {
		again = access.traffic.Again(try)
	}
	return nil, again, d.pullError(ctx, ref, access, err)
}

// rightPlatform refuses an image for another machine. One that came without an
// index says so only in its config.
func (d *Driver) rightPlatform(ctx context.Context, img containerd.Image) error {
	store := d.client.ContentStore()
	desc, err := img.Config(ctx)
	if err != nil {
		return err
	}
	data, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return err
	}
	var c ocispec.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("%w: its config is no JSON", errRefused)
	}
	if c.OS == "" || c.Architecture == "" {
		return nil
	}
	if have := platforms.Normalize(c.Platform); !platforms.Default().Match(have) {
		return wrongPlatform([]ocispec.Platform{have})
	}
	return nil
}

// errRefused: the registry answers, and what it has is not taken.
var errRefused = errors.New("it is refused")

func wrongPlatform(have []ocispec.Platform) error {
	var names []string
	for _, p := range have {
		if p.OS != "unknown" { // an attestation
			names = append(names, platforms.Format(p))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > 12 {
		names = append(names[:12], fmt.Sprintf("%d more", len(names)-12))
	}
	return fmt.Errorf("%w: it is there for %s, and this node is %s", errRefused, strings.Join(names, ", "), platforms.Format(platforms.DefaultSpec()))
}

// drop forgets a name and, at once, what only it needed.
func (d *Driver) drop(ctx context.Context, name string) {
	ctx, cancel := d.detached(ctx, deleteFor)
	defer cancel()
	if err := d.client.ImageService().Delete(ctx, name, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
		d.log.Warn("cannot remove a refused image", "image", name, "err", err)
	}
}

// abort throws away what came of the parts.
func (d *Driver) abort(ctx context.Context, parts []digest.Digest) {
	ctx, cancel := d.detached(ctx, askFor)
	defer cancel()
	store := d.client.ContentStore()
	active, err := store.ListStatuses(ctx)
	if err != nil {
		return
	}
	for _, s := range active {
		if slices.ContainsFunc(parts, func(p digest.Digest) bool { return strings.HasSuffix(s.Ref, p.String()) }) {
			_ = store.Abort(ctx, s.Ref)
		}
	}
}

// watcher refuses what is too large and adds up progress.
type watcher struct {
	d        *Driver
	progress driver.Progress

	mu      sync.Mutex
	sizes   map[digest.Digest]int64 // of what the image consists of
	total   int64                   // as the manifest has it; 0: not read yet
	indexes int
	last    int64
	refused error // by this node; the first
}

func newWatcher(d *Driver, progress driver.Progress) *watcher {
	return &watcher{d: d, progress: progress, sizes: map[digest.Digest]int64{}}
}

func (w *watcher) digests() []digest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []digest.Digest
	for k := range w.sizes {
		all = append(all, k)
	}
	return all
}

func (w *watcher) refuse(format string, args ...any) error {
	err := fmt.Errorf("%w: %w", errRefused, fmt.Errorf(format, args...))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refused == nil {
		w.refused = err
	}
	return err
}

func (w *watcher) handler(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		// Neither addresses of its own choice nor content inline.
		desc.URLs, desc.Data = nil, nil
		limit, index := w.d.cfg.maxImage(), images.IsIndexType(desc.MediaType)
		switch {
		case images.IsManifestType(desc.MediaType), index:
			limit = image.MaxManifest
		case images.IsKnownConfig(desc.MediaType):
			limit = image.MaxConfig
		}
		if desc.Size > limit {
			return nil, w.refuse("%s of %d bytes is larger than the %d that are read", desc.MediaType, desc.Size, limit)
		}
		w.mu.Lock()
		w.sizes[desc.Digest] = desc.Size
		if index {
			w.indexes++
		}
		deep := w.indexes > maxIndexes
		w.mu.Unlock()
		if deep {
			return nil, w.refuse("an index within an index, more than %d deep", maxIndexes)
		}
		children, err := next.Handle(ctx, desc)
		switch {
		case err != nil && index && errdefs.IsNotFound(err):
			if have := w.platforms(ctx, desc); len(have) > 0 {
				err = wrongPlatform(have)
				w.mu.Lock()
				w.refused = err
				w.mu.Unlock()
			}
		case err == nil && images.IsManifestType(desc.MediaType):
			err = w.admit(ctx, children)
		}
		return children, err
	})
}

// platforms lists what an index, fetched already, has.
func (w *watcher) platforms(ctx context.Context, desc ocispec.Descriptor) []ocispec.Platform {
	data, err := content.ReadBlob(ctx, w.d.client.ContentStore(), desc)
	if err != nil {
		return nil
	}
	var index ocispec.Index
	if json.Unmarshal(data, &index) != nil {
		return nil
	}
	var have []ocispec.Platform
	for _, m := range index.Manifests {
		if m.Platform != nil {
			have = append(have, *m.Platform)
		}
	}
	return have
}

// admit looks at the parts of an image before the first is fetched.
func (w *watcher) admit(ctx context.Context, parts []ocispec.Descriptor) error {
	if len(parts) > maxLayers {
		return w.refuse("%d layers are more than the %d that are taken", len(parts)-1, maxLayers)
	}
	var total, missing int64
	for _, p := range parts {
		if p.Size < 0 || p.Size > w.d.cfg.maxImage() {
			return w.refuse("a layer of %d bytes, and --max-image-size is %d", p.Size, w.d.cfg.maxImage())
		}
		total += p.Size
		if ok, err := content.Exists(ctx, w.d.client.ContentStore(), p); err != nil || !ok {
			missing += p.Size
		}
	}
	if total > w.d.cfg.maxImage() {
		return w.refuse("it has %d bytes before it is unpacked, and --max-image-size is %d", total, w.d.cfg.maxImage())
	}
	w.mu.Lock()
	w.total = total
	for _, p := range parts {
		w.sizes[p.Digest] = p.Size
	}
	w.mu.Unlock()
	free, err := w.d.freeDisk()
	if err == nil && missing > free {
		w.d.wantRoom()
		return w.refuse("%d bytes are missing of it, and the disk has room for %d: free some on the node, or give it more", missing, max(0, free))
	}
	return nil
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
	sizes := make(map[digest.Digest]int64, len(w.sizes))
	var total int64
	for k, v := range w.sizes {
		sizes[k], total = v, total+v
	}
	known := w.total > 0
	w.mu.Unlock()
	if !known {
		return
	}
	store := w.d.client.ContentStore()
	active, err := store.ListStatuses(ctx)
	if err != nil {
		return
	}
	var done int64
	parts := 0
	for k, size := range sizes {
		// What is being written counts by its offset even if it is complete: it
		// is not verified yet.
		i := slices.IndexFunc(active, func(s content.Status) bool { return strings.HasSuffix(s.Ref, k.String()) })
		if i >= 0 {
			done += active[i].Offset
			continue
		}
		// Neither being written nor there: it has yet to begin.
		if ok, err := content.Exists(ctx, store, ocispec.Descriptor{Digest: k}); err == nil && ok {
			done += size
			parts++
		}
	}
	if done = max(done, w.last); total > 0 {
		w.last = done
		w.progress(fmt.Sprintf("pull; %d of %d parts", parts, len(sizes)), min(done, total), total)
	}
}
