package workloadfile

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what the parser says into testdata")

// stories splits a file of "== title", input, "----", expected.
func stories(t *testing.T, path string) (out []story) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split("\n"+string(data), "\n== ")[1:] {
		title, body, _ := strings.Cut(part, "\n")
		input, want, ok := strings.Cut(body, "\n----\n")
		if !ok {
			input = strings.TrimSuffix(body, "\n----")
		}
		out = append(out, story{title: title, input: input + "\n", want: strings.TrimRight(want, "\n")})
	}
	return out
}

type story struct{ title, input, want string }

func TestBadFilesNamePlaceAndRemedy(t *testing.T) {
	const path = "testdata/bad.txt"
	list := stories(t, path)
	if len(list) < 40 {
		t.Fatalf("%d stories, want at least 40", len(list))
	}
	var out strings.Builder
	for _, s := range list {
		ws, err := Parse("web.yml", []byte(unescape(s.input)))
		if err == nil {
			t.Errorf("%s: accepted", s.title)
			continue
		}
		if ws != nil {
			t.Errorf("%s: workloads beside an error", s.title)
		}
		fmt.Fprintf(&out, "== %s\n%s----\n%s\n\n", s.title, s.input, err)
		if !*rewrite && err.Error() != s.want {
			t.Errorf("%s:\n got %s\nwant %s", s.title, err, s.want)
		}
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// unescape lets a story show a tab.
func unescape(s string) string { return strings.ReplaceAll(s, "<TAB>", "\t") }

func TestGoodFilesAreRead(t *testing.T) {
	for _, s := range stories(t, "testdata/good.txt") {
		ws, err := Parse("web.yml", []byte(unescape(s.input)))
		if err != nil {
			t.Errorf("%s: %v", s.title, err)
			continue
		}
		var names []string
		for _, w := range ws {
			names = append(names, w.GetName())
		}
		if got := strings.Join(names, " "); got != s.want {
			t.Errorf("%s: got %q, want %q", s.title, got, s.want)
		}
	}
}

func TestEveryFieldReachesTheMessage(t *testing.T) {
	data, err := os.ReadFile("testdata/every-field.yml")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := Parse("every-field.yml", data)
	if err != nil {
		t.Fatal(err)
	}
	var all []proto.Message
	for _, w := range ws {
		all = append(all, w)
	}
	unset := map[string]bool{}
	for _, m := range []proto.Message{&redoubtv1.Workload{}} {
		allPaths("", m, unset)
	}
	for _, m := range all {
		setPaths("", m, unset)
	}
	if len(unset) > 0 {
		t.Errorf("fields that the file does not set or that were not read: %v", unset)
	}
	// As JSON, which the same parser reads, it is the same workload.
	for _, w := range ws {
		js, err := protojson.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		js = bytes.ReplaceAll(js, []byte(`"terminationGracePeriodSeconds":"30"`), []byte(`"terminationGracePeriodSeconds":30`))
		js = bytes.ReplaceAll(js, []byte(`"runAsUser":"1000"`), []byte(`"runAsUser":1000`))
		js = bytes.ReplaceAll(js, []byte(`"runAsGroup":"1000"`), []byte(`"runAsGroup":1000`))
		again, err := Parse("w.json", js)
		if err != nil {
			t.Fatalf("%v\n%s", err, js)
		}
		if !proto.Equal(again[0], w) {
			t.Errorf("JSON reads as\n%v\nwant\n%v", again[0], w)
		}
	}
}

func TestErrorsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("kind: Service\nname: web\ncontainers: [{image: a}]\n")
	for i := range 30 {
		fmt.Fprintf(&b, "zzz%d: 1\n", i)
	}
	_, err := Parse("web.yml", []byte(b.String()))
	var es Errors
	if !errors.As(err, &es) || len(es) != MaxErrors+1 {
		t.Fatalf("%d errors, want %d and a count", len(es), MaxErrors)
	}
	if !strings.HasSuffix(err.Error(), "… and 20 more") {
		t.Errorf("ends in %q", err.Error()[len(err.Error())-40:])
	}
}

func TestHugeFileIsRefusedUnread(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge.yml")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(3 << 30); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := Read(path, nil); err == nil || err.Error() != "huge.yml is 3072.0 MiB, the limit is 1 MiB" {
		t.Errorf("got %v", err)
	}
	if _, err := Read("-", zeros{}); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("stdin without end: got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func FuzzParse(f *testing.F) {
	for _, name := range []string{"testdata/bad.txt", "testdata/good.txt"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range strings.Split(string(data), "\n== ") {
			f.Add([]byte(part))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ws, err := Parse("f.yml", data)
		if (err == nil) == (len(ws) == 0) {
			t.Fatalf("%d workloads and error %v", len(ws), err)
		}
		var es Errors
		if errors.As(err, &es) {
			lines := bytes.Count(data, []byte("\n")) + 2
			for _, e := range es {
				if e.Line > lines {
					t.Fatalf("%v: the file has %d lines", e, lines)
				}
			}
		}
	})
}
