package cli_test

import (
	"os"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"redoubt.dev/redoubt/deploy/runtimes"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// The doctor proves the carried runtimes on this very host, with containers,
// and takes what it made away.
func TestTheDoctorProvesWhatIsCarried(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to start a canary")
	}
	if _, err := runtimes.Embedded(); err != nil {
		t.Skipf("needs the carried runtimes: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	stdout, stderr, code := run(t, t.Context(), "", "doctor", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var report redoubtv1.Report
	if err := protojson.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatal(err)
	}
	kvm := report.GetHost().GetKvm().GetVerdict() == redoubtv1.KvmVerdict_KVM_VERDICT_USABLE
	proven := map[string]bool{}
	for _, f := range report.GetFindings() {
		verified := f.GetState() == redoubtv1.FindingState_FINDING_STATE_VERIFIED
		if verified {
			proven[f.GetRuntime()] = true
		} else if f.GetReason() == "" {
			t.Errorf("%s is not verified, without a reason", f.GetRuntime())
		}
		if verified && f.GetClass() >= redoubtv1.IsolationClass_ISOLATION_CLASS_VM && !kvm {
			t.Errorf("%s is verified as %s though KVM is not usable", f.GetRuntime(), f.GetClass())
		}
	}
	if !proven["runc"] || !proven["gvisor"] {
		t.Errorf("proven are %v, want runc and gvisor among them:\n%s", proven, stdout)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("it left %v behind (%v)", left, err)
	}
}
