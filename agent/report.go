package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/isolation"
)

// Reporter proves what the node's runtimes are worth, again and again, and
// keeps the report. Nothing counts as proven before the first round of this
// boot is through, which is a round of this process: proofs are not stored.
type Reporter struct {
	node   isolation.NodeID
	site   isolation.SiteID
	labels map[string]string
	every  time.Duration
	boot   func() time.Duration
	host   Host
	// generation makes the generation for a content's hash durable.
	generation func(sum string) (uint64, error)
	log        *slog.Logger
	again      chan struct{}

	mu     sync.Mutex
	ready  bool
	report isolation.Report // findings' Age is as of proven
	// proven is when, by the boot clock, each finding's canary ran.
	proven   map[finding]time.Duration
	watchers []chan struct{}
	// doubts counts rounds in a row in which a canary failed.
	doubts int
}

// quickLooks is how many rounds a failed canary is tried again soon: what made
// it fail may have passed (a busy host, a daemon that was just restarted).
const quickLooks = 3

type finding struct {
	runtime isolation.Name
	variant string
}

func keyOf(f isolation.Finding) finding { return finding{f.Runtime, f.Variant} }

// Watch returns a channel that gets a value when the report or proofs changed.
func (r *Reporter) Watch() <-chan struct{} {
	ch := make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watchers = append(r.watchers, ch)
	return ch
}

// Probe asks for a round now.
func (r *Reporter) Probe() { poke(r.again) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Report as of now; false until the first round is through.
func (r *Reporter) Report() (isolation.Report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		return isolation.Report{}, false
	}
	rep := r.report
	rep.Findings = r.aged()
	return rep, true
}

// Proof is what the reconciler judges starts by.
func (r *Reporter) Proof() reconcile.Proof {
	r.mu.Lock()
	defer r.mu.Unlock()
	return reconcile.Proof{Ready: r.ready, Findings: r.aged(), MaxAge: 4 * r.every}
}

func (r *Reporter) aged() []isolation.Finding {
	now := r.boot()
	out := slices.Clone(r.report.Findings)
	for i := range out {
		if at, ok := r.proven[keyOf(out[i])]; ok {
			out[i].Age = now - at
		}
	}
	return out
}

// Run proves until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	retry := time.Duration(0)
	for {
		sure, err := r.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := r.every - r.every/10 + rand.N(r.every/5+1)
		if err != nil || !sure {
			retry = min(max(2*retry, 5*time.Second), r.every)
			wait = retry
			if err != nil {
				r.log.Warn("this node's runtimes could not be proven", "err", err, "again_in", wait)
			}
		} else {
			retry = 0
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-r.again:
		case <-t.C:
		}
		t.Stop()
	}
}

// round probes once. sure is false if some runtime gave no answer.
func (r *Reporter) round(ctx context.Context) (sure bool, err error) {
	facts, err := r.host.Facts(ctx)
	if err != nil {
		return false, fmt.Errorf("measure this host: %w", err)
	}
	began := r.boot()
	found, err := r.host.Findings(ctx, facts)
	if err != nil {
		return false, fmt.Errorf("probe runtimes: %w", err)
	}
	if ctx.Err() != nil {
		return false, ctx.Err() // half a round proves nothing
	}
	slices.SortFunc(found, func(a, b isolation.Finding) int {
		if a.Runtime != b.Runtime {
			return cmpString(string(a.Runtime), string(b.Runtime))
		}
		return cmpString(a.Variant, b.Variant)
	})
	ended := r.boot()
	sure = true
	proven := map[finding]time.Duration{}

	r.mu.Lock()
	old := map[finding]isolation.Finding{}
	for _, f := range r.report.Findings {
		old[keyOf(f)] = f
	}
	failed := false
	for i, f := range found {
		k := keyOf(f)
		switch {
		case f.State == isolation.StateUnusable && f.Digest != "":
			failed = true // its parts are here, and its canary was not satisfied
		case f.State == isolation.StateVerified:
			// Age is as of the end of the round at the latest, and no proof is
			// older than the round.
			proven[k] = max(ended-f.Age, began)
		case f.State == isolation.StateUnknown:
			sure = false
			// No answer says nothing: an earlier proof holds and grows old.
			if o, ok := old[k]; ok && o.State == isolation.StateVerified && o.Digest == f.Digest {
				found[i], proven[k] = o, r.proven[k]
			}
		}
		found[i].Age = 0
	}
	if !failed {
		r.doubts = 0
	} else if r.doubts < quickLooks {
		r.doubts++
		sure = false
	}
	next := isolation.Report{Node: r.node, Site: r.site, Host: facts, Labels: r.labels, Findings: found}
	if r.ready && sameFacts(r.report, next) {
		// Words and rates that vary from round to round are not news.
		r.proven = proven
		r.mu.Unlock()
		r.tell()
		return sure, nil
	}
	r.mu.Unlock()

	content, err := json.Marshal(next)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(content)
	if next.Generation, err = r.generation(hex.EncodeToString(sum[:])); err != nil {
		return false, err
	}
	r.mu.Lock()
	r.report, r.proven, r.ready = next, proven, true
	r.mu.Unlock()
	for _, f := range next.Findings {
		if o := old[keyOf(f)]; o.State != f.State || o.Class != f.Class {
			r.log.Info("runtime is "+f.State.String(), "runtime", string(f.Runtime), "variant", f.Variant, "class", f.Class.String(), "reason", f.Reason)
		}
	}
	r.tell()
	return sure, nil
}

func (r *Reporter) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ch := range r.watchers {
		poke(ch)
	}
}

func cmpString(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

// sameFacts compares what placement and people decide by.
func sameFacts(a, b isolation.Report) bool {
	strip := func(r isolation.Report) isolation.Report {
		r.Generation = 0
		r.Host.KVM.Rate, r.Host.KVM.Reason, r.Host.KVM.Fix = 0, "", ""
		r.Findings = slices.Clone(r.Findings)
		for i := range r.Findings {
			f := &r.Findings[i]
			f.Age, f.Reason, f.Fix = 0, "", ""
		}
		if len(r.Labels) == 0 {
			r.Labels = nil
		}
		return r
	}
	return reflect.DeepEqual(strip(a), strip(b))
}
