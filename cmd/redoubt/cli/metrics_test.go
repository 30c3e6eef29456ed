package cli

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/control/server"
	"redoubt.dev/redoubt/deploy/otlp"
)

var (
	descText = regexp.MustCompile(`fqName: "([a-z_]+)".*variableLabels: \{([a-z,]*)\}`)
	row      = regexp.MustCompile("(?m)^\\| `(redoubt_[a-z_]+)` \\| [a-z]+ \\| ([^|]*) \\| [^|]+ \\|$")
)

// TestTheMetricsPageIsComplete: docs/metrics.md lists exactly what is registered,
// with its labels.
func TestTheMetricsPageIsComplete(t *testing.T) {
	var have []string
	for _, c := range []prometheus.Collector{server.NewMetrics(), agent.NewMetrics(), (*otlp.Exporter)(nil).Metrics()} {
		if err := prometheus.NewPedanticRegistry().Register(c); err != nil {
			t.Error(err)
		}
		ch := make(chan *prometheus.Desc, 100)
		c.Describe(ch)
		close(ch)
		for d := range ch {
			m := descText.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("%s is not understood", d)
			}
			have = append(have, m[1]+" "+m[2])
		}
	}
	page, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		labels := strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(m[2]), "`", ""), ", ", ",")
		listed = append(listed, strings.TrimSuffix(m[1]+" "+labels, "-"))
	}
	slices.Sort(have)
	slices.Sort(listed)
	if fmt.Sprint(have) != fmt.Sprint(listed) {
		t.Errorf("registered:\n%s\nlisted:\n%s", strings.Join(have, "\n"), strings.Join(listed, "\n"))
	}
}

// TestMetricsStayOnTheHost: they are plain HTTP.
func TestMetricsStayOnTheHost(t *testing.T) {
	for address, want := range map[string]string{
		"0.0.0.0:9464": "only a loopback address", "[::]:9464": "only a loopback address", "10.0.0.1:9464": "only a loopback address",
		"localhost": "neither IP:PORT nor unix:/PATH", "unix:metrics": "absolute path", "127.0.0.1:0": "", "[::1]:0": "",
		"unix:" + t.TempDir() + "/m": "",
	} {
		l, err := listenMetrics(address)
		if err == nil {
			l.Close()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
