package isolation

import (
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func always(Finding) bool { return true }

func finding(r Name, c Class, s State) Finding {
	return Finding{Runtime: r, Class: c, State: s, Terms: Terms{Surface: Surface{Syscalls: 80, SyscallsTotal: 362}}}
}

func codes(c Choice) (out []string) {
	for _, r := range c.Rejected {
		out = append(out, r.Code)
	}
	return out
}

func TestEveryReasonOfARejectIsKept(t *testing.T) {
	nabla := finding("nabla", ClassSandbox, StateInstalled)
	nabla.Reason, nabla.Fix = "present, not proven", "wait"
	req := Requirement{Floor: ClassVM, Prefer: ClassMicroVM, Pend: true, Arch: "arm64", NeedsOCIImage: true}
	got := Rank(req, Report{Host: Host{Arch: "amd64"}, Findings: []Finding{nabla}}, always)
	want := []string{CodeNotVerified, CodeBelowFloor, CodePreferUnmet, CodeIncompatible, CodeArchMismatch}
	if len(got) != 1 || !slices.Equal(codes(got[0]), want) {
		t.Fatalf("got %v, want %v", codes(got[0]), want)
	}
	if r := got[0].Rejected[0]; r.Text != nabla.Reason || r.Fix != nabla.Fix {
		t.Errorf("the probe's own words are lost: %+v", r)
	}
}

func TestOnlyVerifiedAndFreshCounts(t *testing.T) {
	for _, c := range []struct {
		state State
		fresh func(Finding) bool
		want  []string
	}{
		{StateVerified, always, nil},
		{StateVerified, func(Finding) bool { return false }, []string{CodeStale}},
		{StateVerified, nil, []string{CodeStale}},
		{StateInstalled, always, []string{CodeNotVerified}},
		{StateUnusable, always, []string{CodeNotVerified}},
		{StateUnknown, always, []string{CodeNotVerified}},
	} {
		got := Rank(Requirement{Floor: ClassContainer}, Report{Findings: []Finding{finding("runc", ClassContainer, c.state)}}, c.fresh)
		if !slices.Equal(codes(got[0]), c.want) {
			t.Errorf("%s: got %v, want %v", c.state, codes(got[0]), c.want)
		}
	}
}

func TestAnOrdinaryImageNeverGoesToAUnikernelMonitor(t *testing.T) {
	report := Report{Findings: []Finding{finding(RuntimeNabla, ClassSandbox, StateVerified)}}
	if got := Rank(Requirement{Floor: ClassContainer, NeedsOCIImage: true}, report, always); got[0].OK() {
		t.Error("nabla takes an ordinary image")
	}
	if got := Rank(Requirement{Floor: ClassContainer}, report, always); !got[0].OK() {
		t.Errorf("nabla refuses a unikernel: %v", got[0].Rejected)
	}
}

func TestPreferIsASoftFloor(t *testing.T) {
	report := Report{Findings: []Finding{finding("runc", ClassContainer, StateVerified), finding("gvisor", ClassSandbox, StateVerified)}}
	for _, c := range []struct {
		req  Requirement
		want string // what can be taken, best first; * meets prefer
	}{
		{Requirement{Floor: ClassContainer}, "gvisor* runc*"},
		{Requirement{Floor: ClassContainer, Prefer: ClassSandbox}, "gvisor* runc"},
		{Requirement{Floor: ClassContainer, Prefer: ClassVM}, "gvisor runc"},
		{Requirement{Floor: ClassContainer, Prefer: ClassSandbox, Pend: true}, "gvisor*"},
		{Requirement{Floor: ClassContainer, Prefer: ClassVM, Pend: true}, ""},
		{Requirement{Floor: ClassVM}, ""},
	} {
		var got []string
		for _, x := range Rank(c.req, report, always) {
			if x.OK() {
				s := string(x.Finding.Runtime)
				if x.MeetsPrefer {
					s += "*"
				}
				got = append(got, s)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v: got %q, want %q", c.req, s, c.want)
		}
	}
}

func TestRankOrdersByIsolationAndNotByListing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Report
		for _, n := range []Name{"runc", "crun", "gvisor", "nabla", "kata-qemu", "firecracker"} {
			for _, v := range []string{"", "x"} {
				if rapid.Bool().Draw(t, "has") {
					f := finding(n, rapid.SampledFrom([]Class{0, 1, 2, 3, 4}).Draw(t, "class"), State(rapid.IntRange(0, 3).Draw(t, "state")))
					f.Variant, f.Terms = v, drawTerms(t, "terms")
					r.Findings = append(r.Findings, f)
				}
			}
		}
		req := Requirement{Floor: Class(rapid.IntRange(0, 4).Draw(t, "floor")), Prefer: Class(rapid.IntRange(0, 4).Draw(t, "prefer")),
			Pend: rapid.Bool().Draw(t, "pend"), NeedsOCIImage: rapid.Bool().Draw(t, "image")}
		got := Rank(req, r, always)
		if len(got) != len(r.Findings) {
			t.Fatalf("%d choices of %d findings", len(got), len(r.Findings))
		}
		for i, c := range got {
			f := c.Finding
			if c.OK() && (f.State != StateVerified || f.Class < req.Floor || f.Class == ClassUnknown || req.Pend && f.Class < req.Prefer) {
				t.Fatalf("%+v accepts %+v", req, f)
			}
			if i > 0 && c.OK() && !got[i-1].OK() {
				t.Fatal("a reject comes before what can be taken")
			}
			if i > 0 && c.OK() && got[i-1].Finding.Class < f.Class && got[i-1].MeetsPrefer == c.MeetsPrefer {
				t.Fatalf("%s comes before %s", got[i-1].Finding.Class, f.Class)
			}
		}
		other := r
		other.Findings = slices.Clone(r.Findings)
		rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed"))).Shuffle(len(other.Findings), func(i, j int) {
			other.Findings[i], other.Findings[j] = other.Findings[j], other.Findings[i]
		})
		if again := Rank(req, other, always); !reflect.DeepEqual(got, again) {
			t.Fatalf("the order of the findings matters:\n%v\n%v", got, again)
		}
	})
}

func TestCatalogueKnowsItsRuntimes(t *testing.T) {
	for r, want := range map[Name]Class{RuntimeRunc: ClassContainer, RuntimeGVisor: ClassSandbox, RuntimeKataQEMU: ClassVM, RuntimeKataFC: ClassMicroVM, "new": ClassUnknown} {
		if got := PromisedClass(r); got != want {
			t.Errorf("%s promises %s, want %s", r, got, want)
		}
	}
	if !RunsOrdinaryImages("new") || RunsOrdinaryImages(RuntimeNabla) {
		t.Error("only the unikernel monitor refuses ordinary images")
	}
}
