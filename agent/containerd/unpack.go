package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
)

// What one file or directory counts for, whatever it holds: an image of empty
// files fills a disk, too.
const perFile = 1 << 10

func (d *Driver) isUnpacked(ctx context.Context, img containerd.Image) bool {
	snapshotter, err := d.snapshots(ctx)
	if err != nil {
		return false
	}
	ok, err := img.IsUnpacked(ctx, snapshotter)
	return err == nil && ok
}

// unpack makes snapshots of an image's layers. What a layer becomes is known
// only by unpacking it; it is watched, and ended when it takes more than an
// image may or leaves the disk too little.
func (d *Driver) unpack(ctx context.Context, img containerd.Image) error {
	name, err := d.snapshots(ctx)
	if err != nil {
		return err
	}
	ok, err := img.IsUnpacked(ctx, name)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("image %s: %w: %w", img.Name(), err, driver.ErrImage)
	}
	if ok {
		return nil
	}
	layers, err := img.RootFS(ctx)
	if err != nil {
		return fmt.Errorf("image %s: read its layers: %w: %w", img.Name(), err, driver.ErrImage)
	}
	chain := map[string]bool{}
	for _, id := range identity.ChainIDs(slices.Clone(layers)) { // written in place, and img keeps them
		chain[id.String()] = true
	}
	service := d.client.SnapshotService(name)
	unpacking, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { stop(d.watchUnpack(unpacking, service, chain)) })
	err = img.Unpack(unpacking, name)
	cause := context.Cause(unpacking)
	stop(nil)
	wg.Wait()
	if err == nil {
		// It may have been quicker than whoever watched it.
		used, err := unpackedSize(ctx, service, chain)
		if err == nil && used > d.cfg.maxImage() {
			return fmt.Errorf("image %s: %w: %w", img.Name(), driver.ErrImage, d.tooLarge())
		}
		return nil
	}
	d.discard(ctx, service, chain)
	if cause != nil && errors.Is(cause, errRefused) {
		return fmt.Errorf("image %s: %w: %w", img.Name(), driver.ErrImage, cause)
	}
	return fmt.Errorf("unpack image %s: %w: %w", img.Name(), err, driver.ErrImage)
}

// watchUnpack returns when ctx ends, or with what is wrong.
func (d *Driver) watchUnpack(ctx context.Context, service snapshots.Snapshotter, chain map[string]bool) error {
	limit := d.cfg.maxImage()
	pause := 100 * time.Millisecond
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if free, err := d.freeDisk(); err == nil && free < 0 {
			d.wantRoom()
			return fmt.Errorf("%w: unpacking it leaves the node's disk too little room: free some, or give it more", errRefused)
		}
		began := time.Now()
		used, err := unpackedSize(ctx, service, chain)
		if err == nil && used > limit {
			return d.tooLarge()
		}
		// To measure is to walk over the files; most of the time is theirs.
		pause = max(100*time.Millisecond, 4*time.Since(began))
	}
}

func (d *Driver) tooLarge() error {
	return fmt.Errorf("%w: unpacked it takes more than the %s that --max-image-size allows", errRefused, bytesText(d.cfg.maxImage()))
}

// extracting tells whether a snapshot is the unpacking of one of chain.
func extracting(key string, chain map[string]bool) bool {
	if !strings.HasPrefix(key, snapshots.UnpackKeyPrefix) {
		return false
	}
	_, id, ok := strings.Cut(key, " ")
	return ok && chain[id]
}

// unpackedSize adds up what the image takes so far.
func unpackedSize(ctx context.Context, service snapshots.Snapshotter, chain map[string]bool) (int64, error) {
	keys, err := unpackKeys(ctx, service, chain, true)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, k := range keys {
		u, err := service.Usage(ctx, k)
		if err != nil {
			continue // it became another since it was listed
		}
		sum += u.Size + u.Inodes*perFile
	}
	return sum, nil
}

func unpackKeys(ctx context.Context, service snapshots.Snapshotter, chain map[string]bool, committed bool) ([]string, error) {
	var keys []string
	err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if committed && chain[info.Name] || extracting(info.Name, chain) {
			keys = append(keys, info.Name)
		}
		return nil
	})
	return keys, err
}

// discard removes what an ended unpacking left. The daemon may still be at
// work on it for a moment.
func (d *Driver) discard(ctx context.Context, service snapshots.Snapshotter, chain map[string]bool) {
	ctx, cancel := d.detached(ctx, deleteFor)
	defer cancel()
	for ctx.Err() == nil {
		keys, err := unpackKeys(ctx, service, chain, false)
		if err == nil {
			for _, k := range keys {
				err = errors.Join(err, service.Remove(ctx, k))
			}
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			d.log.Warn("what an unpacking left is still there", "err", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// disk is the file system that images lie on.
func (d *Driver) disk() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	dir := d.cfg.Dir
	if d.cfg.HostAddress != "" {
		dir = hostDaemonDir
	}
	err := unix.Statfs(dir, &st)
	for err == unix.EINTR {
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return st, fmt.Errorf("measure the file system of %s: %w", dir, err)
	}
	return st, nil
}

// hostDaemonDir is where a host's own containerd keeps images, by its default.
const hostDaemonDir = "/var/lib/containerd"

// keptFree is what images leave of a disk: a twentieth, and at most this.
const keptFree = 512 << 20

// freeDisk is how much more images may take.
func (d *Driver) freeDisk() (int64, error) {
	st, err := d.disk()
	if err != nil {
		return 0, err
	}
	if st.Files > 0 && st.Ffree < st.Files/100 { // some file systems count none
		return -1, nil
	}
	return int64(st.Bavail)*st.Bsize - min(keptFree, int64(st.Blocks)*st.Bsize/20), nil
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
