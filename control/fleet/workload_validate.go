package fleet

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Limits of a workload. They bound what one person can make the state carry;
// docs/workload.md repeats them.
const (
	MaxNameLength           = 50 // leaves room for "-" and an ordinal in 63
	MaxLabels               = 32
	MaxLabelLength          = 63
	MaxSites                = 64
	MaxPerSite              = 100
	MaxReplicas             = 1000
	MaxCompletions          = 10000
	MaxBackoffLimit         = 1000
	MaxImageLength          = 512
	MaxArguments            = 256
	MaxArgumentLength       = 32 << 10
	MaxEnv                  = 256
	MaxEnvNameLength        = 256
	MaxEnvValueLength       = 32 << 10
	MaxPorts                = 64
	MaxVolumes              = 32
	MaxPathLength           = 512
	MaxSpecText             = 256 << 10 // all arguments and variables together
	MinMemory               = 4 << 20   // less than any image's init gets by with
	MaxMemory               = 64 << 40
	MaxCPUMillis            = 1024 * 1000
	MinLostAfter            = time.Second
	MaxLostAfter            = 30 * 24 * time.Hour
	MaxGracePeriod          = time.Hour
	maxID             int64 = 1<<31 - 1
)

// pattern is an expression that is compiled when it is first asked: every start of
// the command would pay for all of them, each completion of a name too.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

var namePattern = pattern(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckName tells what is wrong with the name of a workload, namespace, site,
// container or volume, in the words that follow "name: ".
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("is required")
	case len(s) > MaxNameLength:
		return fmt.Errorf("%q is %d characters long, the limit is %d", clip(s), len(s), MaxNameLength)
	case !namePattern().MatchString(s):
		return fmt.Errorf("%q may have only a-z, 0-9 and \"-\" between them", clip(s))
	}
	return nil
}

// reservedNamespace: "all" would read as a selector, and Redoubt's own objects
// live under its name.
func reservedNamespace(s string) bool {
	return s == "all" || s == "redoubt" || strings.HasPrefix(s, "redoubt-")
}

func (r *reader) name(path, s string) {
	if err := CheckName(s); err != nil {
		r.fail(path, "%s", err)
	}
}

func (r *reader) workload(p *redoubtv1.Workload) Workload {
	w := Workload{
		Kind: WorkloadKind(r.word("kind", p.GetKind(), "", KindWords)),
		Name: p.GetName(), Namespace: NamespaceOrDefault(p.GetNamespace()),
		Network: Network(r.word("network", p.GetNetwork(), string(NetworkBridge), NetworkWords)),
	}
	if p.GetKind() == "" {
		r.fail("kind", "is required: Service (kept running) or Job (runs to completion)")
	}
	r.name("name", w.Name)
	r.name("namespace", w.Namespace)
	if reservedNamespace(w.Namespace) {
		r.fail("namespace", "%q is reserved; choose another", w.Namespace)
	}
	w.Rules = r.networkRules(p.GetNetworkRules(), w)
	w.Labels = r.labels(p.GetLabels())
	w.Isolation = r.isolation(p.GetIsolation())
	w.Placement = r.placement(p.GetPlacement(), w.Kind)
	w.Disconnect = r.disconnect(p.GetDisconnect())
	r.lifetime(p, &w)
	w.Volumes = r.volumes(p.GetVolumes())
	switch n := len(p.GetContainers()); {
	case n == 0:
		r.fail("containers", "is required: one container with an image")
	case n > 1:
		r.fail("containers", "has %d entries; an instance is one container for now: make each a workload of its own", n)
	default:
		w.Containers = []Container{r.container("containers[0]", p.GetContainers()[0], w)}
	}
	return w
}

func (r *reader) labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	if len(m) > MaxLabels {
		r.fail("labels", "has %d entries, the limit is %d", len(m), MaxLabels)
		return nil
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		path := "labels." + clip(k)
		switch {
		case k == "" || len(k) > MaxLabelLength || !labelPattern().MatchString(k):
			r.fail(path, "a label's key is 1 to %d of a-z, 0-9, \".\", \"/\", \"_\" and \"-\"", MaxLabelLength)
		case strings.HasPrefix(k, "redoubt.dev/"):
			r.fail(path, "keys under redoubt.dev/ are reserved; choose another")
		case len(m[k]) > MaxLabelLength:
			r.fail(path, "the value is %d bytes long, the limit is %d", len(m[k]), MaxLabelLength)
		}
	}
	return maps.Clone(m)
}

var labelPattern = pattern(`^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$`)

func (r *reader) isolation(p *redoubtv1.Isolation) IsolationSpec {
	i := IsolationSpec{Floor: r.class("isolation.floor", p.GetFloor(), DefaultFloor, FloorWords)}
	if word := r.word("isolation.prefer", p.GetPrefer(), "strongest", PreferWords); word != "strongest" {
		i.Prefer, _ = isolation.ParseClass(word)
	}
	i.Pend = r.word("isolation.onUnavailable", p.GetOnUnavailable(), "Degrade", OnUnavailableWords) == "Pend"
	if i.Prefer != isolation.ClassUnknown && i.Prefer < i.Floor {
		if p.GetFloor() == "" {
			r.fail("isolation.prefer", "%s is weaker than the floor, which is %s unless stated; state isolation.floor: %s to allow it", i.Prefer, i.Floor, i.Prefer)
		} else {
			r.fail("isolation.prefer", "%s is weaker than the floor %s; the floor is never crossed", i.Prefer, i.Floor)
		}
	}
	if i.Pend && i.Prefer == isolation.ClassUnknown {
		r.fail("isolation.onUnavailable", "Pend has nothing to wait for, since prefer is strongest; name a class in isolation.prefer")
	}
	return i
}

func (r *reader) placement(p *redoubtv1.Placement, kind WorkloadKind) PlacementSpec {
	var perSite, replicas *uint32
	if p != nil {
		perSite, replicas = p.PerSite, p.Replicas
	}
	s := PlacementSpec{
		PerSite:  r.count("placement.perSite", perSite, 0, MaxPerSite),
		Replicas: r.count("placement.replicas", replicas, 0, MaxReplicas),
	}
	if len(p.GetSites()) > MaxSites {
		r.fail("placement.sites", "has %d entries, the limit is %d", len(p.GetSites()), MaxSites)
	} else {
		for i, site := range p.GetSites() {
			path := fmt.Sprintf("placement.sites[%d]", i)
			r.name(path, site)
			if slices.Contains(s.Sites, site) {
				r.fail(path, "%q is named twice", clip(site))
			}
			s.Sites = append(s.Sites, site)
		}
	}
	switch {
	case kind == KindJob && s.PerSite != nil:
		r.fail("placement.perSite", "is for a Service; a Job says how many run at once in job.parallelism")
	case kind == KindJob && s.Replicas != nil:
		r.fail("placement.replicas", "is for a Service; a Job says how many run at once in job.parallelism")
	case s.PerSite != nil && s.Replicas != nil:
		r.fail("placement.perSite", "excludes placement.replicas; keep one of them")
	case kind == KindService && s.PerSite == nil && s.Replicas == nil:
		one := 1
		s.Replicas = &one
	}
	return s
}

func (r *reader) disconnect(p *redoubtv1.Disconnect) DisconnectSpec {
	d := DisconnectSpec{
		LostAfter: r.duration("disconnect.lostAfter", p.GetLostAfter(), DefaultLostAfter, MinLostAfter, MaxLostAfter),
		Replace:   Replacement(r.word("disconnect.replace", p.GetReplace(), string(ReplaceEager), ReplaceWords)),
	}
	if d.Replace != ReplaceSafe {
		if p.GetStopAfter() != "" {
			r.fail("disconnect.stopAfter", "has no effect with replace %s, under which nothing stops for being cut off; set disconnect.replace: Safe or remove it", d.Replace)
		}
		return d
	}
	d.StopAfter = r.duration("disconnect.stopAfter", p.GetStopAfter(), d.LostAfter/2, MinLostAfter/2, MaxLostAfter)
	if d.StopAfter >= d.LostAfter {
		r.fail("disconnect.stopAfter", "%s is not shorter than lostAfter %s; with replace Safe the old instance must have stopped before a new one starts",
			formatDuration(d.StopAfter), formatDuration(d.LostAfter))
	}
	return d
}

// lifetime reads what depends on the kind: restarts, the job and the grace.
func (r *reader) lifetime(p *redoubtv1.Workload, w *Workload) {
	def := RestartAlways
	if w.Kind == KindJob {
		def = RestartOnFailure
	}
	w.Restart = Restart(r.word("restartPolicy", p.GetRestartPolicy(), string(def), RestartWords))
	switch {
	case w.Kind == KindService && w.Restart != RestartAlways:
		r.fail("restartPolicy", "%s is for a Job; a Service is kept running: Always", w.Restart)
	case w.Kind == KindJob && w.Restart == RestartAlways:
		r.fail("restartPolicy", "Always is for a Service; a Job ends: OnFailure or Never")
	}
	w.GracePeriod = DefaultGracePeriod
	if p != nil && p.TerminationGracePeriodSeconds != nil {
		s := *p.TerminationGracePeriodSeconds
		r.between("terminationGracePeriodSeconds", s, 0, int64(MaxGracePeriod/time.Second))
		w.GracePeriod = time.Duration(min(max(s, 0), int64(MaxGracePeriod/time.Second))) * time.Second
	}
	if w.Kind != KindJob {
		if p.GetJob() != nil {
			r.fail("job", "is for kind Job; this is a %s", oneWord(string(w.Kind), "Service"))
		}
		return
	}
	j := JobSpec{Completions: 1, Parallelism: 1, BackoffLimit: DefaultBackoffLimit}
	if q := p.GetJob(); q != nil {
		for _, f := range []struct {
			path  string
			from  *uint32
			to    *int
			least int64
			most  int64
		}{
			{"job.completions", q.Completions, &j.Completions, 1, MaxCompletions},
			{"job.parallelism", q.Parallelism, &j.Parallelism, 1, MaxReplicas},
			{"job.backoffLimit", q.BackoffLimit, &j.BackoffLimit, 0, MaxBackoffLimit},
		} {
			if v := r.count(f.path, f.from, f.least, f.most); v != nil {
				*f.to = *v
			}
		}
	}
	w.Job = &j
}

func oneWord(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (r *reader) volumes(list []*redoubtv1.Volume) (vs []Volume) {
	if len(list) > MaxVolumes {
		r.fail("volumes", "has %d entries, the limit is %d", len(list), MaxVolumes)
		return nil
	}
	for i, p := range list {
		path := fmt.Sprintf("volumes[%d]", i)
		v := Volume{Name: p.GetName()}
		r.name(path+".name", v.Name)
		if v.Name != "" && slices.ContainsFunc(vs, func(o Volume) bool { return o.Name == v.Name }) {
			r.fail(path+".name", "%q is taken by another volume", clip(v.Name))
		}
		switch e, h := p.GetEmptyDir(), p.GetHostPath(); {
		case e != nil && h != nil:
			r.fail(path, "has both emptyDir and hostPath; keep one")
		case h != nil:
			r.path(path+".hostPath.path", h.GetPath())
			v.HostPath = h.GetPath()
		case e != nil:
			v.Memory = true
			if e.GetMedium() == "" {
				r.fail(path+".emptyDir.medium", "is required: Memory (a tmpfs)")
			}
			r.word(path+".emptyDir.medium", e.GetMedium(), "", MediumWords)
			if e.GetSizeLimit() != "" {
				v.Size = r.memory(path+".emptyDir.sizeLimit", e.GetSizeLimit(), 4096)
			}
		default:
			r.fail(path, "has no source: emptyDir {medium: Memory} or hostPath {path: …}")
		}
		vs = append(vs, v)
	}
	return vs
}

// path checks an absolute path, written as it is meant.
func (r *reader) path(field, s string) {
	switch {
	case s == "":
		r.fail(field, "is required")
	case len(s) > MaxPathLength:
		r.fail(field, "is %d bytes long, the limit is %d", len(s), MaxPathLength)
	case strings.ContainsRune(s, 0):
		r.fail(field, "has a NUL in it")
	case s[0] != '/':
		r.fail(field, "%q is not absolute: it must begin with /", clip(s))
	case s != "/" && (strings.HasSuffix(s, "/") || strings.Contains(s, "//")) ||
		slices.Contains(strings.Split(s, "/"), "..") || slices.Contains(strings.Split(s, "/"), "."):
		r.fail(field, "%q is not a plain path: write it without \"..\", \".\", \"//\" and a final \"/\"", clip(s))
	}
}

func (r *reader) memory(path, s string, least int64) int64 {
	n, err := ParseMemory(s)
	if err != nil {
		r.fail(path, "%s", err)
		return 0
	}
	if n < least || n > MaxMemory {
		r.fail(path, "%s is out of range: %s to %s", FormatMemory(n), FormatMemory(least), FormatMemory(MaxMemory))
		return 0
	}
	return n
}
