package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
)

// labelUsed is when an image was last needed, to the hour.
const labelUsed = labelPrefix + "used"

const (
	usedEvery    = time.Hour // labelUsed is written no oftener
	collectEvery = time.Minute
)

// KeepImages keeps what images take between the marks until ctx ends. wanted
// lists the images of the node's assignments, as their files name them.
func (d *Driver) KeepImages(ctx context.Context, wanted func() []string) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	stuck := false // said once, until it is better
	for {
		c, err := d.collectImages(ctx, wanted, false)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, fs.ErrNotExist): // no daemon has made the directory yet
		case err != nil:
			d.log.Warn("cannot remove unused images", "err", err)
		case len(c.removed) > 0 || c.torn > 0:
			d.log.Info("removed unused images", "images", c.removed, "torn_pulls", c.torn, "disk_used_before", percentText(c.before), "disk_used", percentText(c.after))
		}
		if full := err == nil && c.before > c.high && c.after > c.low; full && !stuck {
			d.log.Warn("the file system of the images is fuller than it should be, and what is left on it is in use or not an image",
				"disk_used", percentText(c.after), "high", c.high, "low", c.low, "images_in_use", c.kept)
			stuck = true
		} else if !full {
			stuck = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-d.room:
		}
	}
}

func percentText(p int) string { return fmt.Sprintf("%d %%", p) }

// wantRoom has the collector look now.
func (d *Driver) wantRoom() {
	select {
	case d.room <- struct{}{}:
	default:
	}
}

// collected is what a collection did.
type collected struct {
	before, after, high, low int // percent of the disk
	removed                  []string
	kept                     int // images in use
	torn                     int // pulls whose parts were dropped
}

// collectImages removes unused images, the longest unused first, if the disk
// is fuller than the high mark, or, with all, whatever it is.
func (d *Driver) collectImages(ctx context.Context, wanted func() []string, all bool) (collected, error) {
	limits := d.cfg.Images.withDefaults()
	c := collected{high: limits.High, low: limits.Low}
	var err error
	if c.before, err = d.used(); err != nil {
		return c, err
	}
	c.after = c.before
	ask, cancel := d.bound(ctx, 5*time.Minute)
	defer cancel()
	list, err := d.client.ListImages(ask)
	if err != nil {
		return c, fmt.Errorf("list images: %w", err)
	}
	used, err := d.imagesInUse(ask, list, wanted)
	if err != nil {
		return c, err
	}
	for _, img := range list {
		if used[img.Name()] {
			c.kept++
			d.noteUse(ask, img)
		}
	}
	if !all && c.before <= limits.High {
		return c, nil
	}
	// What torn pulls left is the cheapest to lose.
	if c.torn, err = d.dropTorn(ask); err != nil {
		return c, err
	}
	var errs []error
	for _, img := range d.unused(list, used, limits.MinAge) {
		if c.after, err = d.used(); err != nil || !all && c.after <= limits.Low {
			break
		}
		ok, err := d.collect1(ask, img, wanted)
		if ok {
			c.removed = append(c.removed, img.Name())
		}
		errs = append(errs, err)
	}
	after, err := d.used()
	c.after = after
	return c, errors.Join(append(errs, err)...)
}

// diskUsed is in percent, as df has it.
func (d *Driver) diskUsed() (int, error) {
	st, err := d.disk()
	if err != nil {
		return 0, err
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 {
		return 0, nil
	}
	return int((used*100 + used + st.Bavail - 1) / (used + st.Bavail)), nil
}

// imagesInUse are the names that may not go: those of containers and
// assignments, those being fetched, those that the agent carries, and every
// other name of the same content.
func (d *Driver) imagesInUse(ctx context.Context, list []containerd.Image, wanted func() []string) (map[string]bool, error) {
	used := map[string]bool{}
	for _, name := range wanted() {
		if ref, err := image.Parse(name); err == nil {
			used[ref.Name] = true
		}
	}
	containers, err := d.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers {
		used[c.Image] = true
	}
	content := map[digest.Digest]bool{}
	for _, img := range list {
		if strings.HasPrefix(img.Name(), image.CarriedHost+"/") || d.images.names.isHeld(driver.ID(img.Name())) {
			used[img.Name()] = true
		}
		if used[img.Name()] {
			content[img.Target().Digest] = true
		}
	}
	for _, img := range list {
		if content[img.Target().Digest] {
			used[img.Name()] = true
		}
	}
	return used, nil
}

// unused are the images that may go, the longest unused first.
func (d *Driver) unused(list []containerd.Image, used map[string]bool, minAge time.Duration) []containerd.Image {
	last := map[string]time.Time{}
	var out []containerd.Image
	for _, img := range list {
		at, here := d.images.lastUse(img.Name())
		if !here {
			at = noted(img.Metadata())
		}
		// A time that is yet to come was written under another clock; it says
		// nothing about the age. This life's own times are the kernel's.
		age := time.Since(at)
		if used[img.Name()] || age < minAge && (here || age >= 0) {
			continue
		}
		last[img.Name()] = at
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b containerd.Image) int {
		return cmp.Or(last[a.Name()].Compare(last[b.Name()]), strings.Compare(a.Name(), b.Name()))
	})
	return out
}

// noted is when an image was last used, as far as its record tells.
func noted(img images.Image) time.Time {
	if at, err := time.Parse(time.RFC3339, img.Labels[labelUsed]); err == nil {
		return at
	}
	return img.UpdatedAt
}

// noteUse keeps the time of use for later lives of the agent. To lose it does
// no harm.
func (d *Driver) noteUse(ctx context.Context, img containerd.Image) {
	now := time.Now()
	d.images.use(img.Name(), now)
	record := img.Metadata()
	if age := now.Sub(noted(record)); age >= 0 && age < usedEvery {
		return
	}
	ask, cancel := d.bound(ctx, askFor)
	defer cancel()
	record.Labels = map[string]string{labelUsed: now.UTC().Format(time.RFC3339)}
	if _, err := d.client.ImageService().Update(ask, record, "labels."+labelUsed); err != nil && !errdefs.IsNotFound(err) {
		d.log.Debug("cannot note that an image is used", "image", img.Name(), "err", err)
	}
}

// collect1 removes one image, if nobody has wanted it since. Its content and
// snapshots go with it, as far as nothing else needs them.
func (d *Driver) collect1(ctx context.Context, img containerd.Image, wanted func() []string) (bool, error) {
	try, cancel := context.WithTimeout(ctx, time.Second)
	free, err := d.images.names.lock(try, driver.ID(img.Name()))
	cancel()
	if err != nil {
		return false, nil // it is being fetched
	}
	defer free()
	// From here to the end, whoever wants it waits, and fetches it again.
	if !d.images.leave(img.Name(), d.cfg.Images.withDefaults().MinAge) {
		return false, nil
	}
	defer d.images.left(img.Name())
	used, err := d.imagesInUse(ctx, nil, wanted)
	if err != nil || used[img.Name()] {
		return false, err
	}
	target := img.Target()
	err = d.client.ImageService().Delete(ctx, img.Name(), images.SynchronousDelete(), images.DeleteTarget(&target))
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove image %s: %w", img.Name(), err)
	}
	return true, nil
}

// dropTorn gives up what torn pulls left, apart from pulls that go on.
func (d *Driver) dropTorn(ctx context.Context) (int, error) {
	list, err := d.client.LeasesService().List(ctx)
	if err != nil {
		return 0, fmt.Errorf("list leases: %w", err)
	}
	n := 0
	for _, l := range list {
		name := l.Labels[labelImage]
		if !strings.HasPrefix(l.ID, pullLeases) || d.images.names.isHeld(driver.ID(name)) {
			continue
		}
		free, err := d.images.names.lock(ctx, driver.ID(name))
		if err != nil {
			return n, err
		}
		err = d.endLease(ctx, l, leases.SynchronousDelete)
		free()
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
