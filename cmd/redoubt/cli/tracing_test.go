package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"redoubt.dev/redoubt/proto/tracing"
)

var (
	traceRow  = regexp.MustCompile("(?m)^\\|[ ·]*((?:`[a-z._]+` ?)+)\\|")
	spanWord  = regexp.MustCompile("`([a-z._]+)`")
	agentFile = regexp.MustCompile("(?s)```yaml\n(# /etc/redoubt/agent.yml\n.*?)```")
)

// TestTheTracesPageIsComplete: docs/traces.md lists exactly the spans, events and
// attributes that there are, in the order of the code, and its configuration is
// one.
func TestTheTracesPageIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../../docs/traces.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	listed := map[string][]string{}
	for _, table := range []string{"| span |", "| event |", "| attribute |"} {
		_, rest, ok := strings.Cut(page, table)
		if !ok {
			t.Fatalf("the page has no table %s", table)
		}
		rows, _, _ := strings.Cut(rest, "\n\n")
		for _, row := range traceRow.FindAllStringSubmatch(rows, -1) {
			for _, w := range spanWord.FindAllStringSubmatch(row[1], -1) {
				listed[table] = append(listed[table], w[1])
			}
		}
	}
	if !slices.Equal(listed["| span |"], tracing.Names) {
		t.Errorf("spans: the page has\n%v\nthe code\n%v", listed["| span |"], tracing.Names)
	}
	if !slices.Equal(listed["| event |"], tracing.Events) {
		t.Errorf("events: the page has %v, the code %v", listed["| event |"], tracing.Events)
	}
	for table, have := range map[string][]string{"| attribute |": tracing.Keys} {
		got := slices.Sorted(slices.Values(listed[table]))
		if want := slices.Sorted(slices.Values(have)); !slices.Equal(got, want) {
			t.Errorf("attributes: the page has\n%v\nthe code\n%v", got, want)
		}
	}
	m := agentFile.FindStringSubmatch(page)
	if m == nil {
		t.Fatal("the page shows no configuration")
	}
	file := filepath.Join(t.TempDir(), "agent.yml")
	if err := os.WriteFile(file, []byte(m[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{Env: Env{Getenv: func(string) string { return "" }}}
	for _, c := range []string{"agent", "server"} {
		verb := a.serverVerb()
		if c == "agent" {
			verb, _ = a.agentVerb()
		}
		if err := a.configure(verb.Flags(), file); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		for flag, want := range map[string]string{"tracing-endpoint": "https://otel.example:4318", "tracing-headers-file": "/etc/redoubt/otel-headers", "tracing-sample": "0.1"} {
			if got := verb.Flags().Lookup(flag).Value.String(); got != want {
				t.Errorf("%s: %s is %q, not %q", c, flag, got, want)
			}
		}
	}
}
