package reconcile

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
)

var (
	verified = []isolation.Finding{{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateVerified, Age: time.Minute}}
	at       = store.Moment{Boot: "b", At: time.Hour}
)

func TestDiff(t *testing.T) {
	running := driver.Container{ID: "rd-a", State: driver.StateRunning, Pid: 4, Labels: map[string]string{LabelAttempt: "2", LabelGrace: "3s"}}
	with := func(c driver.Container, f func(*driver.Container)) []driver.Container {
		f(&c)
		return []driver.Container{c}
	}
	exited := func(attempt string) []driver.Container {
		return with(running, func(c *driver.Container) {
			c.State, c.Exit, c.Labels = driver.StateExited, &driver.Exit{Code: 1}, map[string]string{LabelAttempt: attempt}
		})
	}
	facts := func(p store.Phase) []store.Facts {
		return []store.Facts{{UID: "a", Instance: "web-1", Sequence: 3, Fence: store.Fence{Index: 1}, Phase: p, Attempt: 2, Pid: 4, Ran: at}}
	}
	one := []Assignment{service("a", "web-1", 1)}
	edit := func(f func(*Assignment)) []Assignment { a := service("a", "web-1", 1); f(&a); return []Assignment{a} }

	for _, tc := range []struct {
		name  string
		d     Desired
		o     Observed
		want  string
		phase store.Phase
	}{
		{"new", Desired{Assignments: one}, Observed{}, "start", store.Starting},
		{"runs, known", Desired{Assignments: one}, Observed{Containers: with(running, func(*driver.Container) {}), Facts: facts(store.Running)}, "", ""},
		{"runs, agent died during start", Desired{Assignments: one}, Observed{Containers: with(running, func(*driver.Container) {}), Facts: facts(store.Starting)}, "record", store.Running},
		{"runs, ledger lost", Desired{Assignments: one}, Observed{Containers: with(running, func(*driver.Container) {})}, "record", store.Running},
		{"exit of this attempt", Desired{Assignments: one}, Observed{Containers: exited("2"), Facts: facts(store.Running)}, "record", store.BackOff},
		{"exit of an earlier attempt", Desired{Assignments: one}, Observed{Containers: exited("1"), Facts: facts(store.Starting)}, "start", store.Starting},
		{"exit counted already", Desired{Assignments: one}, Observed{Containers: exited("2"), Facts: facts(store.BackOff)}, "start", store.Starting},
		{"exit of a job, ledger lost", Desired{Assignments: edit(func(a *Assignment) { a.Job, a.Restart = true, Never })}, Observed{Containers: exited("1")}, "end", store.Assigned},
		{"created only", Desired{Assignments: one}, Observed{Containers: with(running, func(c *driver.Container) { c.State, c.Pid = driver.StateCreated, 0 }), Facts: facts(store.Starting)}, "start", store.Starting},
		{"the runtime does not say", Desired{Assignments: one}, Observed{Containers: with(running, func(c *driver.Container) { c.State = driver.StateUnknown }), Facts: facts(store.Running)}, "", ""},
		{"paused", Desired{Assignments: one}, Observed{Containers: with(running, func(c *driver.Container) { c.State = driver.StatePaused }), Facts: facts(store.Running)}, "", ""},
		{"orphan", Desired{Assignments: one}, Observed{Containers: with(running, func(c *driver.Container) { c.Orphan = true }), Facts: facts(store.Running)}, "remove", ""},
		{"vanished", Desired{Assignments: one}, Observed{Facts: facts(store.Running)}, "record", store.BackOff},
		{"stop, runs", Desired{Assignments: edit(func(a *Assignment) { a.Stop = true })}, Observed{Containers: with(running, func(*driver.Container) {}), Facts: facts(store.Running)}, "stop", ""},
		{"stop, unknown", Desired{Assignments: edit(func(a *Assignment) { a.Stop = true })}, Observed{Containers: with(running, func(c *driver.Container) { c.State = driver.StateUnknown }), Facts: facts(store.Running)}, "stop", ""},
		{"stop, gone", Desired{Assignments: edit(func(a *Assignment) { a.Stop = true })}, Observed{Facts: facts(store.Running)}, "end", store.Running},
		{"stop, never began", Desired{Assignments: edit(func(a *Assignment) { a.Stop = true })}, Observed{}, "end", store.Assigned},
		{"stop, ended well before", Desired{Assignments: edit(func(a *Assignment) { a.Stop = true })}, Observed{Facts: facts(store.Succeeded)}, "", ""},
		{"final with remains", Desired{Assignments: one}, Observed{Containers: exited("2"), Facts: facts(store.Failed)}, "remove", ""},
		{"final with a network", Desired{Assignments: one}, Observed{Networks: map[string]string{"a": ""}, Facts: facts(store.Failed)}, "remove", ""},
		{"not assigned, no authority", Desired{}, Observed{Containers: with(running, func(*driver.Container) {}), Facts: facts(store.Running)}, "", ""},
		{"not assigned, runs", Desired{Authoritative: true}, Observed{Containers: with(running, func(*driver.Container) {}), Facts: facts(store.Running)}, "stop", ""},
		{"not assigned, orphan", Desired{Authoritative: true}, Observed{Containers: with(running, func(c *driver.Container) { c.Orphan = true })}, "remove", ""},
		{"not assigned, exited", Desired{Authoritative: true}, Observed{Containers: exited("2")}, "remove", ""},
		{"not assigned, nothing left", Desired{Authoritative: true}, Observed{Facts: facts(store.Stopped)}, "forget", ""},
		{"another's container", Desired{Authoritative: true}, Observed{Containers: with(running, func(c *driver.Container) { c.ID = "canary-1" })}, "", ""},
		{"spec cannot be run", Desired{Assignments: edit(func(a *Assignment) { a.Invalid = "no" })}, Observed{}, "end", store.Assigned},
		{"newer fence, same uid", Desired{Assignments: edit(func(a *Assignment) { a.Fence.Index = 9 })}, Observed{Containers: with(running, func(*driver.Container) {}), Facts: facts(store.Running)}, "record", store.Running},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.d.Proof = Proof{Ready: true, Findings: verified}
			tc.o.Now = at
			got, phase := "", store.Phase("")
			for _, a := range Diff(tc.d, tc.o) {
				got, phase = a.Kind.String(), a.Facts.Phase
			}
			if got != tc.want || phase != tc.phase {
				t.Errorf("got %q with phase %q, want %q with %q", got, phase, tc.want, tc.phase)
			}
		})
	}
}

func TestAdmission(t *testing.T) {
	a := service("a", "web-1", 1)
	for name, tc := range map[string]struct {
		f    isolation.Finding
		wait bool
		why  string
	}{
		"fresh":     {verified[0], false, ""},
		"stale":     {isolation.Finding{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateVerified, Age: 3 * time.Hour}, true, "the proof of gvisor (systrap) is 3h0m0s old; waits for a new one"},
		"installed": {isolation.Finding{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateInstalled}, false, "gvisor (systrap) is not proven on this node: it is installed"},
		"weaker":    {isolation.Finding{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassContainer, State: isolation.StateVerified}, false, "gvisor (systrap) gives container here, below the floor sandbox"},
	} {
		wait, why := Proof{Ready: true, MaxAge: time.Hour, Findings: []isolation.Finding{tc.f}}.admits(&a)
		if wait != tc.wait || why != tc.why {
			t.Errorf("%s: %v %q, want %v %q", name, wait, why, tc.wait, tc.why)
		}
	}
}

// Whatever the node looks like: at most one action an instance, the same for
// the same input in any order, nothing started below its floor, unproven,
// beside its double or without a lease, and nothing unknown touched without
// authority.
func TestDiffProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		uids := []string{"a", "b", "c"}
		var d Desired
		o := Observed{Now: at, Networks: map[string]string{}}
		d.Authoritative = rapid.Bool().Draw(t, "authoritative")
		d.Connected = rapid.Bool().Draw(t, "connected")
		d.Proof.Ready = rapid.Bool().Draw(t, "proven")
		d.Proof.Findings = []isolation.Finding{{Runtime: "gvisor", Variant: "systrap",
			Class: isolation.Class(rapid.IntRange(0, 4).Draw(t, "class")), State: isolation.State(rapid.IntRange(0, 3).Draw(t, "state"))}}
		d.Lease.Renewed = store.Moment{Boot: rapid.SampledFrom([]string{"b", "old", ""}).Draw(t, "lease boot"), At: at.At - time.Duration(rapid.IntRange(0, 120).Draw(t, "lease age"))*time.Second}
		phases := []store.Phase{store.Assigned, store.Starting, store.Running, store.BackOff, store.Succeeded, store.Failed, store.Stopped, store.Rejected}
		for _, uid := range uids {
			if rapid.Bool().Draw(t, uid+" assigned") {
				a := service(uid, fmt.Sprintf("web-%d", rapid.IntRange(1, 2).Draw(t, uid+" name")), rapid.Uint64Range(1, 3).Draw(t, uid+" fence"))
				a.Stop = rapid.Bool().Draw(t, uid+" stop")
				a.Floor = isolation.Class(rapid.IntRange(1, 4).Draw(t, uid+" floor"))
				a.Job, a.Restart = rapid.Bool().Draw(t, uid+" job"), Restart(rapid.IntRange(0, 2).Draw(t, uid+" restart"))
				if rapid.Bool().Draw(t, uid+" safe") {
					a.StopAfter = time.Minute
				}
				d.Assignments = append(d.Assignments, a)
			}
			if rapid.Bool().Draw(t, uid+" known") {
				f := store.Facts{UID: uid, Sequence: 1, Phase: rapid.SampledFrom(phases).Draw(t, uid+" phase"), Attempt: rapid.Uint64Range(0, 3).Draw(t, uid+" attempt"), Ran: at}
				if !f.Phase.Final() && rapid.Bool().Draw(t, uid+" ending") {
					f.Ending = store.Failed
				}
				o.Facts = append(o.Facts, f)
			}
			if rapid.Bool().Draw(t, uid+" there") {
				c := driver.Container{ID: ContainerID(uid), State: driver.State(rapid.IntRange(0, 4).Draw(t, uid+" state")),
					Labels: map[string]string{LabelAttempt: fmt.Sprint(rapid.IntRange(0, 3).Draw(t, uid+" label"))}, Orphan: rapid.Bool().Draw(t, uid+" orphan")}
				o.Containers = append(o.Containers, c)
			}
			if rapid.Bool().Draw(t, uid+" attached") {
				o.Networks[uid] = "10.88.0.2"
			}
		}
		actions := Diff(d, o)

		d2, o2 := d, o
		d2.Assignments, o2.Containers, o2.Facts = slices.Clone(d.Assignments), slices.Clone(o.Containers), slices.Clone(o.Facts)
		slices.Reverse(d2.Assignments)
		slices.Reverse(o2.Containers)
		slices.Reverse(o2.Facts)
		if other := Diff(d2, o2); !reflect.DeepEqual(actions, other) {
			t.Fatalf("order matters:\n%+v\n%+v", actions, other)
		}
		seen := map[string]bool{}
		started := map[string]bool{}
		for _, a := range actions {
			if seen[a.UID] {
				t.Fatalf("two actions for %s", a.UID)
			}
			seen[a.UID] = true
			i := slices.IndexFunc(d.Assignments, func(x Assignment) bool { return x.UID == a.UID })
			if i < 0 {
				if !d.Authoritative {
					t.Fatalf("%s of %s without authority", a.Kind, a.UID)
				}
				if a.Kind == Start || a.Kind == Record || a.Kind == End {
					t.Fatalf("%s of %s, which is not assigned", a.Kind, a.UID)
				}
				continue
			}
			as := d.Assignments[i]
			if a.Kind != Start {
				continue
			}
			f := d.Proof.Findings[0]
			switch {
			case as.Stop:
				t.Fatalf("started %s, which must stop", a.UID)
			case !d.Proof.Ready || f.State != isolation.StateVerified || f.Class < as.Floor:
				t.Fatalf("started %s at floor %s on %+v", a.UID, as.Floor, f)
			case as.StopAfter > 0 && (d.Lease.Renewed.Boot != "b" || at.At-d.Lease.Renewed.At >= as.StopAfter):
				t.Fatalf("started %s without a lease", a.UID)
			case started[as.Instance]:
				t.Fatalf("two of %s started", as.Instance)
			}
			started[as.Instance] = true
			for _, c := range o.Containers {
				uid, _ := InstanceUID(c.ID)
				if uid == a.UID && (c.State == driver.StateRunning || c.State == driver.StatePaused || c.State == driver.StateUnknown) {
					t.Fatalf("started %s, which is %s", a.UID, c.State)
				}
				for _, x := range d.Assignments {
					if x.UID == uid && uid != a.UID && x.Instance == as.Instance {
						t.Fatalf("started %s while %s of the same name is there", a.UID, uid)
					}
				}
			}
			for _, f := range o.Facts {
				if f.UID == a.UID && (f.Phase.Final() || f.Ending != "") {
					t.Fatalf("started %s, which is final", a.UID)
				}
			}
		}
	})
}

func TestHostPaths(t *testing.T) {
	dir := t.TempDir()
	ok, secret := filepath.Join(dir, "ok"), filepath.Join(dir, "secret")
	for _, d := range []string{ok, secret, filepath.Join(ok, "in"), ok + "-not"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, filepath.Join(ok, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(ok, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		ok:                                "",
		filepath.Join(ok, "in"):           "",
		filepath.Join(dir, "link", "in"):  "", // leads to where it is allowed
		secret:                            "--allow-host-path=" + secret,
		ok + "-not":                       "not allowed",
		filepath.Join(ok, "out"):          "leads to " + secret,
		filepath.Join(ok, "..", "secret"): "not allowed",
		filepath.Join(ok, "missing"):      "no such file",
		filepath.Join(dir, "missing"):     "not allowed", // tells nothing
		"relative":                        "not absolute",
	} {
		got, err := CheckHostPath(path, []string{ok})
		switch {
		case want == "" && (err != nil || !strings.HasPrefix(got, ok)):
			t.Errorf("%s: %q, %v", path, got, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := CheckHostPath(secret, nil); err == nil {
		t.Error("an empty list allows something")
	}
	if _, err := CheckHostPath(filepath.Join(ok, "in"), []string{filepath.Join(dir, "link")}); err != nil {
		t.Errorf("an allowed link: %v", err)
	}
}
