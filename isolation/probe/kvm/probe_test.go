package kvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"redoubt.dev/redoubt/isolation"
)

func TestProbeTellsTheTruthAboutThisHost(t *testing.T) {
	began := time.Now()
	got := Probe(t.Context())
	t.Logf("%+v in %v", got, time.Since(began))
	if got.Verdict != isolation.KVMUsable && got.Reason == "" {
		t.Error("a verdict without a reason")
	}
	if _, err := os.Stat(device); errors.Is(err, fs.ErrNotExist) {
		if got.Verdict != isolation.KVMAbsent {
			t.Errorf("without %s: %v", device, got.Verdict)
		}
		return
	}
	if runtime.GOARCH != "amd64" {
		if got.Verdict != isolation.KVMUnknown {
			t.Errorf("on %s: %v", runtime.GOARCH, got.Verdict)
		}
		return
	}
	if _, err := os.Stat("/sys/module/kvm_pvm"); err != nil {
		t.Skip("needs the module kvm_pvm for a verdict that is known beforehand")
	}
	if got.Verdict != isolation.KVMParavirtual {
		t.Errorf("on paravirtual KVM: %+v", got)
	}
	if got.Rate <= 0 || got.Rate >= usableRate {
		t.Errorf("rate %v", got.Rate)
	}
}

func TestMeasureIsQuick(t *testing.T) {
	if _, err := os.Stat(device); err != nil || !supported {
		t.Skip("needs /dev/kvm on amd64")
	}
	o, err := measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", o)
	// Three slices of 25 ms of CPU time, and what machines cost to make.
	// A busy host stretches it; the bound is the child's own end.
	if o.Took >= childLife {
		t.Errorf("took %v", o.Took)
	}
}

func TestProbeEndsByItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	got := Probe(ctx)
	if time.Since(began) > time.Second {
		t.Errorf("took %v", time.Since(began))
	}
	if got.Verdict == isolation.KVMUsable || got.Reason == "" {
		t.Errorf("got %+v", got)
	}
}

func TestJudge(t *testing.T) {
	tests := []struct {
		name string
		o    outcome
		want isolation.KVMVerdict
		says string
	}{
		{"hardware", outcome{Steps: allSteps, End: "halt", Rates: []float64{2e9}}, isolation.KVMUsable, ""},
		{"emulated host", outcome{Steps: allSteps, End: "halt", Rates: []float64{1e6, 15e6}}, isolation.KVMUsable, ""},
		{"paravirtual", outcome{Steps: "LXI", End: "shutdown", Rates: []float64{4e5, 6e5, 5e5}}, isolation.KVMParavirtual, "paravirtual"},
		{"all steps, but every instruction emulated", outcome{Steps: allSteps, End: "halt", Rates: []float64{5e5}},
			isolation.KVMParavirtual, "paravirtual"},
		{"just below", outcome{Steps: allSteps, End: "halt", Rates: []float64{1.99e6}}, isolation.KVMParavirtual, "paravirtual"},
		{"fast, but no system call", outcome{Steps: "LXI", End: "shutdown", Rates: []float64{2e9}}, isolation.KVMUnusable, "few instructions: shutdown"},
		{"fast, but sees wrong values", outcome{Steps: "LB", End: "halt", Rates: []float64{2e9}}, isolation.KVMUnusable, `"LB"`},
		{"never got far", outcome{End: "KVM internal error, suberror 1"}, isolation.KVMUnusable, "suberror 1"},
		{"no rate", outcome{Steps: allSteps, End: "halt"}, isolation.KVMUnusable, "first halt"},
		{"starved", outcome{Steps: allSteps, End: "halt", Starved: true}, isolation.KVMUnknown, "busy"},
		{"starved once", outcome{Steps: allSteps, End: "halt", Starved: true, Rates: []float64{2e9}}, isolation.KVMUsable, ""},
		{"not permitted", outcome{Stage: "open", Error: "permission denied", Denied: true}, isolation.KVMUnusable, "may not be opened"},
		{"no machine", outcome{Stage: "create a machine", Error: "device busy"}, isolation.KVMUnusable, "cannot create a machine: device busy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(tt.o)
			if got.Verdict != tt.want || !strings.Contains(got.Reason, tt.says) {
				t.Errorf("got %+v", got)
			}
			if (got.Verdict == isolation.KVMUsable) != (got.Fix == "" && got.Reason == "") {
				t.Errorf("reason and fix do not fit the verdict: %+v", got)
			}
		})
	}
}

func TestAbsentNamesTheNearestFix(t *testing.T) {
	for flags, want := range map[string]string{
		"fpu vmx sse":        "kvm_intel",
		"fpu svm hypervisor": "kvm_amd",
		"fpu hypervisor":     "nested",
		"fpu vmxfoo":         "firmware",
	} {
		got := absent("processor\t: 0\nflags\t\t: " + flags + "\nbugs\t: vmx\n")
		if got.Verdict != isolation.KVMAbsent || !strings.Contains(got.Fix, want) {
			t.Errorf("%s: %+v", flags, got)
		}
	}
}

// TestGuestCodeIsItsSource holds guest_amd64.go to testdata/guest.S.
func TestGuestCodeIsItsSource(t *testing.T) {
	for _, tool := range []string{"as", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs binutils to assemble the guest")
		}
	}
	if !supported {
		t.Skip("needs an assembler for amd64")
	}
	dir := t.TempDir()
	obj, bin := filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
	for _, args := range [][]string{
		{"as", "--64", "-o", obj, "testdata/guest.S"},
		{"objcopy", "-O", "binary", "-j", ".text", obj, bin},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	want, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if got := assembled(len(want)); string(got) != string(want) {
		t.Errorf("guest_amd64.go does not hold what testdata/guest.S assembles to:\n got %x\nwant %x", got, want)
	}
}
