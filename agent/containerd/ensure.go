package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
)

// EnsureImage implements driver.Driver. Callers that want the same image at
// the same time share one pull; it goes on until the last of them has gone.
func (d *Driver) EnsureImage(ctx context.Context, name, policy string, progress driver.Progress) (string, error) {
	ref, err := image.Parse(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", driver.ErrImage, err)
	}
	switch policy {
	case "":
		policy = driver.PullIfNotPresent
	case driver.PullIfNotPresent, driver.PullAlways, driver.PullNever:
	default:
		return "", fmt.Errorf("image %s: pull policy %q is none of %s, %s, %s", ref.Name, policy, driver.PullIfNotPresent, driver.PullAlways, driver.PullNever)
	}
	if ref.Digest != "" && policy == driver.PullAlways {
		policy = driver.PullIfNotPresent // a digest cannot move
	}
	ctx = namespaces.WithNamespace(ctx, d.cfg.namespace())
	// The common case takes no turn and waits for nobody.
	if d.images.use(ref.Name, time.Now()) && policy != driver.PullAlways {
		if img, ok, err := d.present(ctx, ref); err != nil {
			return "", err
		} else if ok && d.isUnpacked(ctx, img) {
			d.noteUse(ctx, img)
			return img.Target().Digest.String(), nil
		}
	}
	return d.images.share(ctx, ref.Name+" "+policy, progress, func(ctx context.Context, progress driver.Progress) (string, error) {
		// One at a time changes what a name means; so the collector, too.
		free, err := d.images.names.lock(ctx, driver.ID(ref.Name))
		if err != nil {
			return "", fmt.Errorf("image %s: %w", ref.Name, err)
		}
		defer free()
		d.images.use(ref.Name, time.Now())
		return d.fetch(ctx, ref, policy, progress)
	})
}

// present finds an image that is here with all its parts.
func (d *Driver) present(ctx context.Context, ref image.Reference) (containerd.Image, bool, error) {
	img, err := d.client.GetImage(ctx, ref.Name)
	if errdefs.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("image %s: %w: %w", ref.Name, driver.ErrUnavailable, err)
	}
	// A carried image is as new as the agent; it may have been replaced with it.
	if ref.Kind == image.Carried && !d.carriedIsCurrent(ref, img) {
		return nil, false, nil
	}
	complete, err := d.complete(ctx, img)
	return img, err == nil && complete, nil
}

// fetch makes ref startable: from what is here, else from where it lies.
func (d *Driver) fetch(ctx context.Context, ref image.Reference, policy string, progress driver.Progress) (string, error) {
	img, ok, err := d.present(ctx, ref)
	if err != nil {
		return "", err
	}
	if !ok && policy == driver.PullNever && ref.Kind == image.Registry {
		return "", fmt.Errorf("image %s is not on this node, and its pull policy is Never: load it there or use %s: %w", ref.Name, driver.PullIfNotPresent, driver.ErrImage)
	}
	if !ok || policy == driver.PullAlways {
		release, err := d.images.turn(ctx, progress)
		if err != nil {
			return "", fmt.Errorf("image %s: %w", ref.Name, err)
		}
		defer release()
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
	}
	progress("unpack", 0, 0)
	if err := d.unpack(ctx, img); err != nil {
		if ref.Kind != image.Carried && errors.Is(err, errRefused) {
			d.drop(ctx, ref.Name) // its parts must not fill the disk
		}
		return "", err
	}
	d.noteUse(ctx, img)
	return img.Target().Digest.String(), nil
}

// imageWork is what goes on with images: who waits for which, how many are
// fetched at once, when each was last wanted.
type imageWork struct {
	names perID         // held while a name is fetched or collected
	turns chan struct{} // one for each image being fetched

	mu      sync.Mutex // a leaf; held for moments
	flights map[string]*flight
	used    map[string]time.Time // by name; of this life of the agent
	leaving map[string]bool      // names that are being removed
}

func newImageWork(pulls int) *imageWork {
	return &imageWork{turns: make(chan struct{}, pulls), flights: map[string]*flight{}, used: map[string]time.Time{}, leaving: map[string]bool{}}
}

// use notes that name is wanted; false: it is just being removed.
func (w *imageWork) use(name string, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.After(w.used[name]) {
		w.used[name] = at
	}
	return !w.leaving[name]
}

// leave begins the removal of name, unless it was wanted lately; left ends it.
func (w *imageWork) leave(name string, minAge time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at, ok := w.used[name]; ok && time.Since(at) < minAge {
		return false
	}
	w.leaving[name] = true
	return true
}

func (w *imageWork) left(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.leaving, name)
}

func (w *imageWork) lastUse(name string) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.used[name]
	return at, ok
}

// turn waits until few enough images are being fetched.
func (w *imageWork) turn(ctx context.Context, progress driver.Progress) (func(), error) {
	select {
	case w.turns <- struct{}{}:
	default:
		progress("wait for other images to be pulled before", 0, 0)
		select {
		case w.turns <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return func() { <-w.turns }, nil
}

// flight is work that several callers wait for.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	digest string
	err    error

	// Of imageWork.mu.
	waiting   int
	next      int
	listeners map[int]driver.Progress
}

// share joins the flight of key, or starts it with do. do gets a context that
// ends when the last caller has gone. Progress is told to all, one at a time.
func (w *imageWork) share(ctx context.Context, key string, progress driver.Progress, do func(context.Context, driver.Progress) (string, error)) (string, error) {
	w.mu.Lock()
	f := w.flights[key]
	if f == nil {
		f = &flight{done: make(chan struct{}), listeners: map[int]driver.Progress{}}
		inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f.cancel = cancel
		w.flights[key] = f
		go func() {
			defer cancel()
			f.digest, f.err = do(inner, func(stage string, done, total int64) { w.tell(f, stage, done, total) })
			w.mu.Lock()
			if w.flights[key] == f {
				delete(w.flights, key)
			}
			w.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiting++
	me := f.next
	f.next++
	if progress != nil {
		f.listeners[me] = progress
	}
	w.mu.Unlock()

	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(f.listeners, me)
		if f.waiting--; f.waiting == 0 {
			f.cancel()
			if w.flights[key] == f {
				delete(w.flights, key) // whoever comes now starts anew
			}
		}
	}()
	select {
	case <-f.done:
		return f.digest, f.err
	case <-ctx.Done():
		w.mu.Lock()
		last := f.waiting == 1
		w.mu.Unlock()
		if last {
			// What it leaves behind is in order when this returns.
			f.cancel()
			<-f.done
		}
		return "", fmt.Errorf("image %s: %w", key, context.Cause(ctx))
	}
}

func (w *imageWork) tell(f *flight, stage string, done, total int64) {
	w.mu.Lock()
	var to []driver.Progress
	for _, l := range f.listeners {
		to = append(to, l)
	}
	w.mu.Unlock()
	for _, l := range to {
		l(stage, done, total)
	}
}
