package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "redoubt.dev/redoubt/"

// listed is what `go list` says of one package, without its tests.
type listed struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles,Imports", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 15 {
		t.Fatalf("go list found %d packages: the test looks in the wrong place", len(all))
	}
	return all
}

// rooms says what a package may import of this module: the rule of the longest
// prefix holds. "." is the package itself with everything below it.
var rooms = []struct {
	prefix  string
	allowed []string
}{
	{"isolation", []string{"isolation"}},
	{"isolation/gossip", []string{"isolation", "proto"}},
	{"isolation/receipt", []string{"isolation", "proto"}},
	{"identity", []string{"identity"}},
	{"proto", []string{"proto"}},

	{"control", []string{"control", "isolation", "identity", "proto"}},
	{"control/fleet", []string{"isolation", "control/fleet", "proto"}},
	{"control/placement", []string{"isolation", "control/fleet", "control/placement"}},
	{"control/state", []string{"isolation", "control/fleet", "control/state", "proto"}},
	{"control/consensus", []string{"isolation", "control/fleet", "control/state", "control/consensus", "identity", "proto"}},

	{"agent", []string{"agent", "isolation", "identity", "proto"}},
	{"agent/registry", []string{"agent/registry", "agent/image"}},
	{"agent/driver", []string{"agent/driver", "isolation"}},
	{"agent/driver/fake", []string{"agent/driver", "agent/image", "isolation"}},

	{"deploy/runtimes", []string{"deploy/runtimes"}},
	{"deploy/otlp", []string{"deploy/otlp", "proto/tracing"}},
	{"deploy/systemd", []string{"deploy/systemd"}},
	{"deploy/install", []string{"deploy/install", "deploy/systemd"}},
	{"deploy/node", []string{"deploy/node", "deploy/runtimes", "agent", "isolation", "identity", "proto"}},
	{"deploy/dev", nil},
	{"cmd", nil},
	{"integration", nil},
}

// TestImportsRunOneWay holds the import rules of ARCHITECTURE.md.
func TestImportsRunOneWay(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		best := -1
		for i, r := range rooms {
			if within(name, r.prefix) && (best < 0 || len(r.prefix) > len(rooms[best].prefix)) {
				best = i
			}
		}
		if best < 0 {
			t.Errorf("%s has no room in the house: ARCHITECTURE.md and this test say which there are", name)
			continue
		}
		if rooms[best].allowed == nil {
			continue // joins both sides
		}
		for _, imp := range p.Imports {
			rel, ours := strings.CutPrefix(imp, module)
			if ours && !slices.ContainsFunc(rooms[best].allowed, func(a string) bool { return within(rel, a) }) {
				t.Errorf("%s imports %s; it may import only %s", name, rel, strings.Join(rooms[best].allowed, ", "))
			}
		}
	}
}

// only lists imports that a single place may have.
var only = map[string][]string{
	"github.com/containerd/containerd/v2": {"agent/containerd"},
	"github.com/hashicorp/raft":           {"control/consensus", "control/state"}, // state implements raft.FSM
	"github.com/hashicorp/memberlist":     {"isolation/gossip"},
	"github.com/google/nftables":          {"agent/network"},
	"go.opentelemetry.io/otel":            {"proto/tracing", "deploy/otlp"},
	"go.opentelemetry.io/otel/sdk":        {"deploy/otlp"},
}

// TestLibrariesHaveOneRoom keeps each large library behind one package, so that
// it can be replaced and its traps are known in one place.
func TestLibrariesHaveOneRoom(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if within(name, "integration") {
			continue
		}
		for _, imp := range p.Imports {
			for lib, where := range only {
				if within(imp, lib) && !slices.ContainsFunc(where, func(w string) bool { return within(name, w) }) {
					t.Errorf("%s imports %s; only %s may", name, imp, strings.Join(where, ", "))
				}
			}
		}
	}
}

// TestPureCodeStaysPure: what plans reads no clock and does no I/O.
func TestPureCodeStaysPure(t *testing.T) {
	forbidden := []string{"context", "log/slog", "log", "os", "net", "net/http", "io/fs", "math/rand", "math/rand/v2", "sync"}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if name != "control/placement" && name != "isolation" {
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains(forbidden, imp) {
				t.Errorf("%s imports %s: it must stay pure", name, imp)
			}
		}
	}
}

// TestEveryPackageSaysWhatItIs: one package comment each, that names it.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if len(p.GoFiles) == 0 || within(name, "proto") {
			continue
		}
		short := name[strings.LastIndex(name, "/")+1:]
		if !strings.HasPrefix(p.Doc, fmt.Sprintf("Package %s ", short)) && !strings.HasPrefix(p.Doc, "Command ") {
			t.Errorf("%s: its package comment is %q", name, p.Doc)
		}
	}
}

func within(name, prefix string) bool {
	return name == prefix || strings.HasPrefix(name, prefix+"/")
}
