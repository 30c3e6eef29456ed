package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// fuzzed says which fuzz target reads through each decoder: a function that
// makes something of bytes or text. A target of another package is named with it.
var fuzzed = map[string]string{
	"agent/canary.parse":                "FuzzParse",
	"agent/containerd.parseHierarchies": "FuzzHost",
	"agent/containerd.parseSignal":      "FuzzHost",
	"agent/image.Parse":                 "FuzzParse",
	"agent/image.parse":                 "FuzzParse",
	"agent/image.parseLayout":           "FuzzParse",
	"agent/image.OpenLayout":            "FuzzLayout",
	"agent/logs.parse":                  "FuzzIndex",
	"agent/network.decodeRecord":        "FuzzDecodeRecord",
	"agent/network.parseResolvConf":     "FuzzResolvConf",
	"agent/network.answerLocal":         "FuzzQuestion",
	"agent/registry.readCredentials":    "FuzzCredentials",
	"agent/store.unseal":                "FuzzUnseal",
	"cmd/redoubt/cli.parsePortPair":     "FuzzPortPair",
	"cmd/redoubt/cli.readConfig":        "FuzzConfig",
	"cmd/redoubt/workloadfile.Parse":    "FuzzParse",
	"control.parseAuthority":            "identity/attest.FuzzCSR",
	"control/archive.Read":              "FuzzRead",
	"control/fleet.ParseCPU":            "FuzzQuantities",
	"control/fleet.ParseMemory":         "FuzzQuantities",
	"control/fleet.ParsePortRange":      "FuzzQuantities",
	"control/fleet.WorkloadFromProto":   "FuzzWorkload",
	"control/server.count":              "FuzzCodec",
	"deploy/install.parseSettings":      "FuzzSettings",
	"identity.Parse":                    "FuzzParse",
	"identity.ParseKind":                "FuzzParse",
	"identity.parseFile":                "FuzzContextFile",
	"identity.parseKey":                 "FuzzPEM",
	"identity.parseSVID":                "FuzzPEM",
	"identity.parseBundles":             "FuzzPEM",
	"identity/attest.ParseToken":        "FuzzParseToken",
	"identity/attest.decodeToken":       "FuzzParseToken",
	"identity/attest.parsePin":          "FuzzCSR",
	"identity/attest.parseChain":        "FuzzCSR",
	"identity/attest.CSRKey":            "FuzzCSR",
	"identity/ca.parse":                 "FuzzParse",
	"isolation/gossip.DecodeDigest":     "FuzzDecodeDigest",
	"isolation/surface.parseStatus":     "FuzzParseStatus",
}

// plain are decoders that compare or cut and have nothing to fall over.
var plain = map[string]string{
	"isolation.ParseClass":         "looks a word up",
	"deploy/runtimes.parseVersion": "cuts the first line of what a carried program prints",
}

// TestEveryDecoderIsFuzzed finds functions that by name and arguments decode,
// and requires a fuzz target of each.
func TestEveryDecoderIsFuzzed(t *testing.T) {
	name := regexp.MustCompile(`^(parse|decode|unseal|unmarshal|unpack|Parse|Decode|Unmarshal)([A-Z].*)?$`)
	exists := map[string]bool{}
	found := map[string]token.Position{}
	files := token.NewFileSet()
	for _, top := range []string{"agent", "cmd", "control", "deploy", "identity", "isolation"} {
		if err := filepath.WalkDir(filepath.Join("..", top), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || d.Name() == "testdata" {
					return filepath.SkipDir // a module of its own
				}
				return nil
			}
			if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
				return nil
			}
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			room := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if !ok || f.Recv != nil {
					continue
				}
				switch {
				case strings.HasSuffix(path, "_test.go"):
					exists[room+"."+f.Name.Name] = strings.HasPrefix(f.Name.Name, "Fuzz")
				case name.MatchString(f.Name.Name) && reads(f):
					found[room+"."+f.Name.Name] = files.Position(f.Pos())
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if len(found) < 20 {
		t.Fatalf("only %d decoders are found", len(found))
	}
	for decoder, at := range found {
		if fuzzed[decoder] == "" && plain[decoder] == "" {
			t.Errorf("%s: %s has no fuzz target: make one and name it in integration/decoders_test.go", at, decoder)
		}
	}
	for decoder, target := range fuzzed {
		if !strings.Contains(target, ".") {
			target = decoder[:strings.LastIndex(decoder, ".")+1] + target
		}
		if !exists[target] {
			t.Errorf("%s, which is to read through %s, is not there", target, decoder)
		}
	}
}

// reads tells whether a function takes bytes or text.
func reads(f *ast.FuncDecl) bool {
	for _, p := range f.Type.Params.List {
		switch p := p.Type.(type) {
		case *ast.Ident:
			if p.Name == "string" {
				return true
			}
		case *ast.ArrayType:
			return true
		}
	}
	return false
}
