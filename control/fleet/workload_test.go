package fleet

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func minimal() *redoubtv1.Workload {
	return &redoubtv1.Workload{Kind: "Service", Name: "web", Containers: []*redoubtv1.Container{{Image: "a"}}}
}

func TestDefaultsAreFilledIn(t *testing.T) {
	w, err := WorkloadFromProto(minimal())
	if err != nil {
		t.Fatal(err)
	}
	one := 1
	want := Workload{
		Kind: KindService, Namespace: "default", Name: "web",
		Isolation: IsolationSpec{Floor: isolation.ClassSandbox}, Placement: PlacementSpec{Replicas: &one},
		Disconnect: DisconnectSpec{LostAfter: 5 * time.Minute, Replace: ReplaceEager},
		Containers: []Container{{Name: "web", Image: "a", Pull: PullIfNotPresent,
			Resources: Resources{CPURequest: 100, MemoryRequest: 128 << 20, MemoryLimit: 128 << 20, PidsLimit: 256}}},
		Restart: RestartAlways, GracePeriod: 10 * time.Second, Network: NetworkBridge,
	}
	if !reflect.DeepEqual(w, want) {
		t.Errorf("got  %+v\nwant %+v", w, want)
	}
	p := minimal()
	p.Kind = "Job"
	if w, err = WorkloadFromProto(p); err != nil || *w.Job != (JobSpec{1, 1, 3}) || w.Restart != RestartOnFailure || w.Placement.Replicas != nil {
		t.Errorf("job: %+v %v", w, err)
	}
}

func TestOneOfLimitAndRequestGivesTheOther(t *testing.T) {
	for _, c := range []struct {
		limits, requests map[string]string
		want             Resources
	}{
		{map[string]string{"memory": "64Mi", "cpu": "500m"}, nil, Resources{500, 500, 64 << 20, 64 << 20, 256}},
		{nil, map[string]string{"memory": "32M", "cpu": "0.25"}, Resources{250, 0, 32e6, 32e6, 256}},
		{map[string]string{"memory": "1Gi", "pids": "64", "cpu": "2"}, map[string]string{"memory": "512Mi", "cpu": "1"}, Resources{1000, 2000, 512 << 20, 1 << 30, 64}},
	} {
		p := minimal()
		p.Containers[0].Resources = &redoubtv1.Resources{Limits: c.limits, Requests: c.requests}
		w, err := WorkloadFromProto(p)
		if err != nil || w.Containers[0].Resources != c.want {
			t.Errorf("%v %v: got %+v, want %+v (%v)", c.limits, c.requests, w.Containers[0].Resources, c.want, err)
		}
	}
}

// drawProto is a valid workload with some of everything.
func drawProto(t *rapid.T) *redoubtv1.Workload {
	some := func(label string, words ...string) string { return rapid.SampledFrom(append(words, "")).Draw(t, label) }
	u := func(label string, low, high uint32) *uint32 {
		v := rapid.Uint32Range(low, high).Draw(t, label)
		return &v
	}
	p := minimal()
	p.Isolation = &redoubtv1.Isolation{Floor: some("floor", "container", "sandbox", "vm"), Prefer: some("prefer", "strongest", "vm", "microvm")}
	if p.Isolation.Prefer != "" && p.Isolation.Prefer != "strongest" {
		p.Isolation.OnUnavailable = some("unavailable", "Pend", "Degrade")
	}
	p.Placement = &redoubtv1.Placement{Sites: rapid.SampledFrom([][]string{nil, {"oslo"}, {"oslo", "lab"}}).Draw(t, "sites")}
	p.Disconnect = &redoubtv1.Disconnect{LostAfter: some("lost", "1m", "90s", "2h", "1h30m"), Replace: some("replace", "Eager", "Safe", "Never")}
	if rapid.Bool().Draw(t, "job") {
		p.Kind = "Job"
		p.Job = &redoubtv1.Job{Completions: u("completions", 1, 9), Parallelism: u("parallelism", 1, 9), BackoffLimit: u("backoff", 0, 9)}
	} else if rapid.Bool().Draw(t, "per site") {
		p.Placement.PerSite = u("n", 0, 5)
	}
	if rapid.Bool().Draw(t, "labels") {
		p.Labels = map[string]string{"a.b/c": "d", "e": ""}
	}
	grace := rapid.Int64Range(0, 3600).Draw(t, "grace")
	p.TerminationGracePeriodSeconds = &grace
	p.Volumes = []*redoubtv1.Volume{{Name: "t", EmptyDir: &redoubtv1.EmptyDir{Medium: "Memory", SizeLimit: some("size", "16Mi", "5000")}}, {Name: "h", HostPath: &redoubtv1.HostPath{Path: "/srv"}}}
	c := p.Containers[0]
	c.Name, c.ImagePullPolicy, c.WorkingDir = some("name", "main"), some("pull", PullWords...), some("dir", "/x/y")
	c.Command, c.Args = rapid.SampledFrom([][]string{nil, {"sh"}}).Draw(t, "command"), rapid.SampledFrom([][]string{nil, {"-c", ""}}).Draw(t, "args")
	c.Env = []*redoubtv1.EnvVar{{Name: "A", Value: rapid.StringN(0, 5, 20).Filter(func(s string) bool { return !strings.ContainsRune(s, 0) }).Draw(t, "value")}}
	c.Resources = &redoubtv1.Resources{Limits: map[string]string{"memory": FormatMemory(rapid.Int64Range(MinMemory, 1<<40).Draw(t, "memory")), "cpu": FormatCPU(rapid.Int64Range(1, 9000).Draw(t, "cpu"))}}
	c.Ports = []*redoubtv1.ContainerPort{{Name: "p", ContainerPort: 80, HostPort: *u("host", 0, 65535), Protocol: some("protocol", "TCP", "UDP")}}
	if c.Ports[0].HostPort != 0 {
		c.Ports[0].HostIp = some("ip", "127.0.0.1", "::1")
	}
	if rapid.Bool().Draw(t, "security") {
		id := rapid.Int64Range(0, 70000).Draw(t, "id")
		c.SecurityContext = &redoubtv1.SecurityContext{RunAsUser: &id, RunAsGroup: &id, ReadOnlyRootFilesystem: true,
			Capabilities: &redoubtv1.Capabilities{Add: []string{"CAP_NET_RAW", "CHOWN"}, Drop: []string{"ALL"}}}
	}
	c.VolumeMounts = []*redoubtv1.VolumeMount{{Name: "t", MountPath: "/tmp"}, {Name: "h", MountPath: "/data", ReadOnly: true}}
	return p
}

func TestAWorkloadSurvivesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProto(t)
		before := proto.Clone(p)
		w, err := WorkloadFromProto(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := WorkloadFromProto(w.Proto())
		if err != nil {
			t.Fatalf("what Proto writes is refused: %v", err)
		}
		if !reflect.DeepEqual(w, again) {
			t.Fatalf("got  %+v\nwant %+v", again, w)
		}
		if d := Diff(w, again); len(d) > 0 {
			t.Fatalf("differs from itself in %v", d)
		}
		if c := w.Clone(); !reflect.DeepEqual(c, w) {
			t.Fatal("a clone differs")
		}
		// Nothing is shared: spoiling the message spoils no workload.
		p.Containers[0].Env[0].Value, p.Volumes[0].Name = "spoilt", "spoilt"
		if w2, _ := WorkloadFromProto(before.(*redoubtv1.Workload)); !reflect.DeepEqual(w, w2) {
			t.Fatal("the workload shares memory with its message")
		}
	})
}

func TestDiffNamesFieldsAsTheFileDoes(t *testing.T) {
	base := minimal()
	base.Labels = map[string]string{"a": "1", "b": "2"}
	base.Containers[0].Env = []*redoubtv1.EnvVar{{Name: "A", Value: "x"}}
	two := uint32(2)
	for _, c := range []struct {
		change  func(*redoubtv1.Workload)
		want    string
		restart string
	}{
		{func(p *redoubtv1.Workload) { p.Containers[0].Image = "b" }, "containers[0].image", "containers[0].image"},
		{func(p *redoubtv1.Workload) { p.Containers[0].Env[0].Value = "y" }, "containers[0].env[0].value", "containers[0].env[0].value"},
		{func(p *redoubtv1.Workload) { p.Containers[0].Env = nil }, "containers[0].env", "containers[0].env"},
		{func(p *redoubtv1.Workload) { p.Labels = map[string]string{"a": "2", "c": ""} }, "labels.a labels.b labels.c", ""},
		{func(p *redoubtv1.Workload) { p.Placement = &redoubtv1.Placement{Replicas: &two} }, "placement.replicas", ""},
		{func(p *redoubtv1.Workload) { p.Placement = &redoubtv1.Placement{PerSite: &two} }, "placement.perSite placement.replicas", ""},
		{func(p *redoubtv1.Workload) { p.Isolation = &redoubtv1.Isolation{Prefer: "vm"} }, "isolation.prefer", ""},
		{func(p *redoubtv1.Workload) { p.Disconnect = &redoubtv1.Disconnect{Replace: "Never"} }, "disconnect.replace", ""},
		{func(p *redoubtv1.Workload) { p.Disconnect = &redoubtv1.Disconnect{Replace: "Safe"} }, "disconnect.replace disconnect.stopAfter", "disconnect.stopAfter"},
		{func(p *redoubtv1.Workload) { p.Isolation = &redoubtv1.Isolation{Floor: "sandbox"} }, "", ""},
		{func(p *redoubtv1.Workload) { p.Network = "none" }, "network", "network"},
	} {
		p := proto.Clone(base).(*redoubtv1.Workload)
		c.change(p)
		a, errA := WorkloadFromProto(base)
		b, errB := WorkloadFromProto(p)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := strings.Join(Diff(a, b), " "); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		if got := strings.Join(NeedsRestart(a, b), " "); got != c.restart {
			t.Errorf("restart for %q, want %q", got, c.restart)
		}
	}
}

func TestAllThatIsWrongIsNamed(t *testing.T) {
	p := &redoubtv1.Workload{Kind: "Servce", Name: "Web", Isolation: &redoubtv1.Isolation{Floor: "wm"},
		Containers: []*redoubtv1.Container{{Image: "a", Resources: &redoubtv1.Resources{Limits: map[string]string{"memory": "64Mb"}}}}}
	_, err := WorkloadFromProto(p)
	var invalid *InvalidWorkload
	if !errors.As(err, &invalid) {
		t.Fatalf("got %v", err)
	}
	var paths []string
	for _, f := range invalid.Fields {
		paths = append(paths, f.Path)
	}
	want := []string{"kind", "name", "isolation.floor", "containers[0].resources.limits.memory"}
	if !slices.Equal(paths, want) {
		t.Errorf("got %v, want %v", paths, want)
	}
	if _, err := WorkloadFromProto(nil); err == nil {
		t.Error("no message is a workload")
	}
	if _, err := WorkloadFromProto(&redoubtv1.Workload{Kind: "Service", Name: "a", Containers: []*redoubtv1.Container{nil}, Volumes: []*redoubtv1.Volume{nil}}); err == nil {
		t.Error("empty entries are accepted")
	}
}

func TestQuantitiesAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, MaxMemory).Draw(t, "bytes")
		if got, err := ParseMemory(FormatMemory(n)); err != nil || got != n {
			t.Fatalf("%d is written %q and read %d (%v)", n, FormatMemory(n), got, err)
		}
		m := rapid.Int64Range(0, MaxCPUMillis).Draw(t, "millis")
		if got, err := ParseCPU(FormatCPU(m)); err != nil || got != m {
			t.Fatalf("%dm is written %q and read %d (%v)", m, FormatCPU(m), got, err)
		}
	})
	for s, want := range map[string]int64{"0.5Gi": 512 << 20, "1.5k": 1500, "7": 7, "64M": 64e6} {
		if got, err := ParseMemory(s); err != nil || got != want {
			t.Errorf("%q reads %d (%v), want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1", "1e3", "64MB", "64 Mi", "Mi", "0.3", "99999999999Ti", "9223372036854775808", "٣Mi"} {
		if n, err := ParseMemory(s); err == nil {
			t.Errorf("memory %q reads %d", s, n)
		}
	}
	for _, s := range []string{"", "-1", "1.0001", "1k", "m", "0.5m", "1e3"} {
		if n, err := ParseCPU(s); err == nil {
			t.Errorf("cpu %q reads %d", s, n)
		}
	}
}

func TestEveryHintIsAccepted(t *testing.T) {
	for _, s := range []string{"64Mb", "64mb", "64MB", "64MiB", "1.5g", "2 Gi", "10kb"} {
		_, err := ParseMemory(s)
		if err == nil {
			t.Errorf("%q is accepted", s)
			continue
		}
		_, hint, ok := strings.Cut(err.Error(), "did you mean ")
		if !ok {
			t.Errorf("%q: no hint in %q", s, err)
			continue
		}
		for _, h := range strings.Split(strings.Trim(hint, "?"), " or ") {
			if _, err := ParseMemory(strings.Trim(h, `"`)); err != nil {
				t.Errorf("%q: the hint %s is refused: %v", s, h, err)
			}
		}
	}
}

func TestNearestFindsSlipsAndNothingElse(t *testing.T) {
	for _, c := range [][2]string{{"sanbox", "sandbox"}, {"SANDBOX", "sandbox"}, {"microv", "microvm"}, {"cotnainer", "container"}, {"gvisor", ""}, {"", ""}, {"xy", ""}} {
		if got := Nearest(c[0], FloorWords); got != c[1] {
			t.Errorf("%q: got %q, want %q", c[0], got, c[1])
		}
	}
}

func TestPortsOverlapByAddress(t *testing.T) {
	p := minimal()
	p.Containers[0].Ports = []*redoubtv1.ContainerPort{{ContainerPort: 1, HostPort: 80, HostIp: "10.0.0.1"}, {ContainerPort: 2, HostPort: 80, HostIp: "10.0.0.2"}, {ContainerPort: 3, HostPort: 80, Protocol: "UDP"}}
	w, err := WorkloadFromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	ports := w.HostPorts()
	if ports[0].Overlaps(ports[1]) || ports[1].Overlaps(ports[2]) {
		t.Error("different addresses or protocols collide")
	}
	if !ports[0].Overlaps(HostPort{Port: 80, Protocol: "TCP"}) {
		t.Error("every address does not collide with one")
	}
	p.Containers[0].Ports[1].HostIp = "0.0.0.0"
	if _, err := WorkloadFromProto(p); err == nil || !strings.Contains(err.Error(), "published twice") {
		t.Errorf("got %v", err)
	}
}
