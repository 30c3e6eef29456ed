package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestExamplesAreWhatTheySay(t *testing.T) {
	want := map[string]struct {
		kind   fleet.WorkloadKind
		floor  isolation.Class
		prefer isolation.Class
	}{
		"web":    {fleet.KindService, isolation.ClassSandbox, isolation.ClassVM},
		"batch":  {fleet.KindJob, isolation.ClassContainer, isolation.ClassUnknown},
		"vault":  {fleet.KindService, isolation.ClassVM, isolation.ClassUnknown},
		"steady": {fleet.KindService, isolation.ClassSandbox, isolation.ClassUnknown},
	}
	files, err := filepath.Glob("../../../examples/*.yml")
	if err != nil || len(files) != len(want) {
		t.Fatalf("examples: %v, %v", files, err)
	}
	for _, file := range files {
		ws, err := workloadfile.Read(file, nil)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		w, err := fleet.WorkloadFromProto(ws[0])
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if name := strings.TrimSuffix(filepath.Base(file), ".yml"); len(ws) != 1 || w.Name != name {
			t.Errorf("%s holds %d workloads, the first is %s", file, len(ws), w.Name)
		}
		got := want[w.Name]
		if w.Kind != got.kind || w.Isolation.Floor != got.floor || w.Isolation.Prefer != got.prefer {
			t.Errorf("%s is a %s with floor %s and prefer %s", file, w.Kind, w.Isolation.Floor, w.Isolation.Prefer)
		}
		if w.Name == "web" && (len(w.Containers[0].Ports) != 1 || w.Containers[0].Ports[0].Host != 18080) {
			t.Errorf("web publishes %v, want 18080", w.Containers[0].Ports)
		}
	}
}

// The page names every reason of an event.
func TestTheEventsPageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range fleet.EventReasons {
		if !strings.Contains(string(b), "`"+r+"`") {
			t.Errorf("%s is not on the page", r)
		}
	}
	for _, n := range []int{state.EventsPerObject, state.EventsPerNamespace, state.EventsInAll} {
		if !strings.Contains(string(b), fmt.Sprint(n)) {
			t.Errorf("the bound %d is not on the page", n)
		}
	}
}

// The page names every field of the file, and its example is a good file.
func TestTheWorkloadPageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../../docs/workload.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if !regexp.MustCompile("`(limits\\.|requests\\.)?"+regexp.QuoteMeta(f.JSONName())+"\\b").MatchString(page) && f.JSONName() != "limits" && f.JSONName() != "requests" {
				t.Errorf("%s.%s is not on the page", m.Name(), f.JSONName())
			}
			if f.Message() != nil && !f.IsMap() {
				walk(f.Message())
			}
		}
	}
	walk((&redoubtv1.Workload{}).ProtoReflect().Descriptor())
	for i, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(page, -1) {
		if _, err := workloadfile.Parse("example.yml", []byte(block[1])); err != nil {
			t.Errorf("example %d: %v", i+1, err)
		}
	}
	for _, row := range regexp.MustCompile(`(?m)^\|.*$`).FindAllString(page, -1) {
		if strings.Count(row, "|") != 5 {
			t.Errorf("a row that is not of four cells: %s", row)
		}
	}
}
