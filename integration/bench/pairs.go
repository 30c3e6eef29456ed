package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"redoubt.dev/redoubt/agent/containerd"
	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// paired holds one median of milliseconds against another's.
func paired(name string, ours, theirs []time.Duration, peer string) figure {
	return ratioed(name, "ms", numbers(ours, ms), numbers(theirs, ms), peer)
}

// ratioed holds one median against another, with the ratio of each pair and the
// bounds between which their median is with 95 % confidence (by ranks: the
// binomial interval of a median).
func ratioed(name, unit string, ours, theirs []float64, peer string) figure {
	f := against(name, middle(ours), unit, peer, middle(theirs))
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	slices.Sort(ratios)
	n := len(ratios)
	f.Ratio = ratios[n/2]
	// For 50 pairs the 18th and the 33rd; for few, the least and the greatest.
	lo, hi := 0, n-1
	if n >= 20 {
		half := 0.98 * math.Sqrt(float64(n)) // 1.96 standard deviations of a fair coin, halved
		lo, hi = max(0, int(float64(n)/2-half)-1), min(n-1, int(float64(n)/2+half)+1)
	}
	f.Low, f.High = ratios[lo], ratios[hi]
	return f
}

func numbers(ds []time.Duration, in func(time.Duration) float64) (out []float64) {
	for _, d := range ds {
		out = append(out, in(d))
	}
	return out
}

// pairs starts containers in turn by the driver and by containerd's client.
type pairs struct {
	drv       *containerd.Driver
	bare      *client.Client
	namespace string
	node, dir string
	image     string
	n         int
	began     time.Duration // from the daemon's start to its answer
}

// bareClient connects to the daemon that cfg runs.
func bareClient(cfg containerd.Config) (*client.Client, error) {
	owners, _ := filepath.Glob("/run/redoubt/*/owner")
	for _, o := range owners {
		text, err := os.ReadFile(o)
		if err == nil && strings.HasPrefix(string(text), string(cfg.Node)+" ") {
			return client.New(filepath.Join(filepath.Dir(o), "c.sock"))
		}
	}
	return nil, errors.New("the daemon's socket is not found")
}

// run times n rounds of so many starts at once, one by one in turn.
func (p *pairs) run(ctx context.Context, runtime isolation.Name, n, at int) (ours, theirs []time.Duration, err error) {
	m, err := p.model(ctx, runtime)
	if err != nil {
		return nil, nil, err
	}
	for i := range n + 1 {
		o, err := p.round(ctx, at, func(ctx context.Context, id string) (func() error, error) { return p.driver(ctx, runtime, id) })
		if err != nil {
			return nil, nil, err
		}
		t, err := p.round(ctx, at, func(ctx context.Context, id string) (func() error, error) { return p.client(ctx, m, id) })
		if err != nil {
			return nil, nil, err
		}
		if i > 0 { // the first one warms the page cache
			ours, theirs = append(ours, o), append(theirs, t)
		}
	}
	return ours, theirs, nil
}

func (p *pairs) round(ctx context.Context, at int, start func(context.Context, string) (func() error, error)) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ends, errs := make([]func() error, at), make([]error, at)
	var all sync.WaitGroup
	begun := time.Now()
	for i := range at {
		p.n++
		id := fmt.Sprintf("pair-%d", p.n)
		all.Go(func() { ends[i], errs[i] = start(ctx, id) })
	}
	all.Wait()
	took := time.Since(begun)
	for _, end := range ends {
		if end != nil {
			errs = append(errs, end())
		}
	}
	return took, errors.Join(errs...)
}

func (p *pairs) driver(ctx context.Context, runtime isolation.Name, id string) (func() error, error) {
	_, err := p.drv.Start(ctx, p.spec(runtime, id))
	return func() error { return p.drv.Delete(ctx, driver.ID(id)) }, err
}

// note is how long containerd takes to note a label of a container, which is
// what a start by the driver does once more than one by the client.
func (p *pairs) note(ctx context.Context, runtime isolation.Name, times int) (_ time.Duration, err error) {
	p.n++
	id := fmt.Sprintf("pair-%d", p.n)
	end, err := p.driver(ctx, runtime, id)
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return 0, err
	}
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	c, err := p.bare.LoadContainer(ctx, id)
	if err != nil {
		return 0, err
	}
	var took []time.Duration
	for i := range times {
		begun := time.Now()
		if _, err := c.SetLabels(ctx, map[string]string{"bench/round": fmt.Sprint(i)}); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begun))
	}
	return median(took), nil
}

func (p *pairs) spec(runtime isolation.Name, id string) driver.Spec {
	return driver.Spec{ID: driver.ID(id), Runtime: runtime, Image: p.image, Command: []string{"sleep", "60"}}
}

// model is what the driver makes of a specification, for the client to make
// the same.
type model struct {
	info  containers.Container
	spec  *oci.Spec
	image client.Image
}

func (p *pairs) model(ctx context.Context, runtime isolation.Name) (m model, err error) {
	id := "model-" + string(runtime)
	if _, err := p.drv.Start(ctx, p.spec(runtime, id)); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, p.drv.Delete(ctx, driver.ID(id))) }()
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	like, err := p.bare.LoadContainer(ctx, id)
	if err != nil {
		return m, err
	}
	if m.info, err = like.Info(ctx); err != nil {
		return m, err
	}
	if m.spec, err = like.Spec(ctx); err != nil {
		return m, err
	}
	m.image, err = p.bare.GetImage(ctx, m.info.Image)
	return m, err
}

// client starts a container as the model was: image, snapshotter, runtime,
// specification.
func (p *pairs) client(ctx context.Context, m model, id string) (func() error, error) {
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	spec, linux := *m.spec, *m.spec.Linux
	linux.CgroupsPath = filepath.Join(filepath.Dir(linux.CgroupsPath), id)
	spec.Linux = &linux
	c, err := p.bare.NewContainer(ctx, id,
		client.WithImage(m.image), client.WithSnapshotter(m.info.Snapshotter), client.WithNewSnapshot(id, m.image),
		client.WithRuntime(m.info.Runtime.Name, m.info.Runtime.Options), client.WithSpec(&spec))
	if err != nil {
		return nil, err
	}
	remove := func() error { return c.Delete(ctx, client.WithSnapshotCleanup) }
	t, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return remove, err
	}
	end := func() error {
		_, err := t.Delete(ctx, client.WithProcessKill)
		return errors.Join(err, remove())
	}
	return end, t.Start(ctx)
}
