package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"redoubt.dev/redoubt/agent/image"
)

// Errors of a Traffic.
var (
	// ErrStalled: too little came for too long.
	ErrStalled = errors.New("the registry stopped sending")
	// ErrLimited: the registry asked to wait longer than is waited.
	ErrLimited = errors.New("the registry limits how often it may be asked")
	// ErrDocument: a document is larger than any real one.
	ErrDocument = errors.New("the registry sent a document without end")
	// ErrPlain: the registry sent the node from TLS to plain HTTP.
	ErrPlain = errors.New("the registry led to an address without TLS")
)

// Limits of one pull; zero fields take the default in brackets.
type Limits struct {
	Document int64         // bytes of anything that is no blob [4 MiB]
	Wait     time.Duration // what a registry may ask to wait, in all [3m]
	Stall    time.Duration // without Least bytes, while something is awaited [1m]
	Least    int64         // [16 KiB]
	Again    time.Duration // before a torn pull is gone on with; twice that the next time [1s]
}

func (l Limits) withDefaults() Limits {
	if l.Document == 0 {
		l.Document = 4 << 20
	}
	if l.Wait == 0 {
		l.Wait = 3 * time.Minute
	}
	if l.Stall == 0 {
		l.Stall = time.Minute
	}
	if l.Least == 0 {
		l.Least = 16 << 10
	}
	if l.Again == 0 {
		l.Again = time.Second
	}
	return l
}

// Traffic bounds and watches the requests of one pull, on whatever transports.
type Traffic struct {
	limits Limits
	// waits tells of a wait that a registry asked for; may be nil.
	waits func(host string, d time.Duration)

	moved atomic.Int64 // bytes that came
	open  atomic.Int64 // answers and bodies that are awaited

	mu     sync.Mutex
	waited time.Duration
}

// NewTraffic makes one.
func NewTraffic(l Limits, waits func(host string, d time.Duration)) *Traffic {
	return &Traffic{limits: l.withDefaults(), waits: waits}
}

// Again is how long to wait before the given try after the first.
func (t *Traffic) Again(try int) time.Duration { return time.Duration(try) * t.limits.Again }

// Over puts the bounds on a transport. plain tells which hosts may be spoken
// to without TLS.
func (t *Traffic) Over(base http.RoundTripper, plain func(host string) bool) http.RoundTripper {
	return &guard{traffic: t, base: base, plain: plain}
}

// Watch returns ErrStalled when a registry keeps this node waiting, and nil
// when ctx ends.
func (t *Traffic) Watch(ctx context.Context) error {
	tick := time.NewTicker(max(t.limits.Stall/8, time.Millisecond))
	defer tick.Stop()
	last, since := t.moved.Load(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := t.moved.Load()
		if t.open.Load() == 0 || now-last >= t.limits.Least {
			last, since = now, time.Now()
		}
		if time.Since(since) >= t.limits.Stall {
			return fmt.Errorf("%w: %d bytes in %s", ErrStalled, now-last, t.limits.Stall)
		}
	}
}

// Moved is how many bytes came.
func (t *Traffic) Moved() int64 { return t.moved.Load() }

type guard struct {
	traffic *Traffic
	base    http.RoundTripper
	plain   func(host string) bool
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain(req.URL.Host) {
		return nil, fmt.Errorf("%w: %s", ErrPlain, req.URL.Host)
	}
	for try := 0; ; try++ {
		g.traffic.open.Add(1)
		resp, err := g.base.RoundTrip(req)
		if err != nil {
			g.traffic.open.Add(-1)
			return nil, err
		}
		g.traffic.moved.Add(1) // an answer is a sign of life, if a small one
		after, asked := wait(resp, try)
		if !asked || req.Body != nil && req.GetBody == nil {
			limit := g.traffic.limits.Document
			if blob(req) && resp.StatusCode < 300 {
				limit = -1 // whoever asked knows its size
			}
			resp.Body = &body{ReadCloser: resp.Body, traffic: g.traffic, left: limit, bounded: limit >= 0}
			return resp, nil
		}
		resp.Body.Close()
		g.traffic.open.Add(-1)
		if err := g.traffic.pause(req.Context(), req.URL.Host, after); err != nil {
			return nil, err
		}
		if req.Body != nil {
			again := req.Clone(req.Context())
			if again.Body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("ask %s again: %w", req.URL.Host, err)
			}
			req = again
		}
	}
}

// wait tells how long a registry wants to be left alone.
func wait(resp *http.Response, try int) (time.Duration, bool) {
	text := resp.Header.Get("Retry-After")
	if resp.StatusCode != http.StatusTooManyRequests && (resp.StatusCode != http.StatusServiceUnavailable || text == "") {
		return 0, false
	}
	if n, err := strconv.Atoi(strings.TrimSpace(text)); err == nil && n >= 0 {
		// A registry that says "at once" over and over is asked less and less
		// often all the same.
		return max(time.Duration(min(n, 1<<20))*time.Second, min(time.Second<<min(try, 5), time.Second*time.Duration(try*10))), true
	}
	if at, err := http.ParseTime(text); err == nil {
		// By its own clock, since this node's may be anywhere.
		now, err := http.ParseTime(resp.Header.Get("Date"))
		if err != nil {
			now = time.Now()
		}
		return min(max(at.Sub(now), time.Second), 1<<20*time.Second), true
	}
	return time.Second << min(try, 5), true
}

// pause waits, within the bound on all waits of a pull.
func (t *Traffic) pause(ctx context.Context, host string, d time.Duration) error {
	t.mu.Lock()
	over := t.waited+d > t.limits.Wait
	if !over {
		t.waited += d
	}
	t.mu.Unlock()
	if over {
		return fmt.Errorf("%w: %s asks to wait %s more", ErrLimited, host, d.Round(time.Second))
	}
	if t.waits != nil {
		t.waits(host, d)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// blob tells whether a request, or the one that led to it, is for a blob.
func blob(req *http.Request) bool {
	for n := 0; req != nil && n < 16; n++ {
		if strings.Contains(req.URL.Path, "/blobs/") {
			return true
		}
		if req.Response == nil {
			return false
		}
		req = req.Response.Request
	}
	return false
}

// body counts what comes, and ends with an error what has no end.
type body struct {
	io.ReadCloser
	traffic *Traffic
	left    int64
	bounded bool
	closed  sync.Once
}

func (b *body) Read(p []byte) (int, error) {
	if b.bounded && b.left < 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrDocument, b.traffic.limits.Document)
	}
	n, err := b.ReadCloser.Read(p)
	b.traffic.moved.Add(int64(n))
	b.left -= int64(n)
	return n, err
}

func (b *body) Close() error {
	b.closed.Do(func() { b.traffic.open.Add(-1) })
	return b.ReadCloser.Close()
}

// Redirect is the policy of clients that talk to registries: a registry may
// point elsewhere for a blob, but what the node told the registry about itself
// stays there.
func Redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("the registry led through more than ten addresses")
	}
	first := via[0].URL
	// A registry on loopback is asked for TLS first and answers in plain HTTP.
	here := image.Loopback(first.Host) && image.Loopback(req.URL.Host)
	if first.Scheme == "https" && req.URL.Scheme != "https" && !here {
		return fmt.Errorf("%w: %s", ErrPlain, req.URL.Host)
	}
	if !strings.EqualFold(first.Host, req.URL.Host) {
		kept := http.Header{}
		for _, k := range []string{"Accept", "Accept-Encoding", "Range", "User-Agent"} {
			if v := req.Header.Values(k); len(v) > 0 {
				kept[k] = v
			}
		}
		req.Header = kept
	}
	return nil
}
