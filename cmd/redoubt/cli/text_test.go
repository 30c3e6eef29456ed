package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestAgesAreShortAndNeverNegative(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 3*time.Minute + 5*time.Second: "3m5s",
		12*time.Minute + 30*time.Second: "12m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h", 50 * time.Hour: "2d",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
}

func TestSizesAndCoresFitAColumn(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 512: "512", 1023: "1Ki", 64 << 20: "64Mi", 206 << 20: "206Mi", 3900 << 20: "3.8Gi", 23 << 30: "23Gi", 1 << 40: "1Ti"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 100: "0.1", 250: "0.25", 1950: "1.95", 2000: "2"} {
		if got := cores(n); got != want {
			t.Errorf("cores(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestWrappedTextLosesNothingAndFits(t *testing.T) {
	text := "use a host with hardware virtualisation, or switch nested SVM or VMX on (lab-1, lab-2): firecracker could then be proven there"
	got := hang("Or           ", text, 60)
	if strings.Join(strings.Fields(got), " ") != "Or "+text {
		t.Errorf("words changed:\n%s", got)
	}
	for i, line := range strings.Split(strings.TrimSuffix(got, "\n"), "\n") {
		if width(line) > 60 || i > 0 && !strings.HasPrefix(line, strings.Repeat(" ", 13)) {
			t.Errorf("line %d: %q", i+1, line)
		}
	}
}

func TestColoursTakeNoWidthAndStayOutUnlessAsked(t *testing.T) {
	show := func(colour bool) string {
		var b bytes.Buffer
		o := &output{w: &b, format: "table", colour: colour}
		err := o.table(func(t *table) {
			t.head("NAME", "STATE", "AGE")
			t.row("a", "a", marked("ready"), "1s")
			t.row("b", "b", marked("lost 3s"), "2s")
		})
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	plain, coloured := show(false), show(true)
	if strings.Contains(plain, "\x1b") {
		t.Errorf("colours nobody asked for: %q", plain)
	}
	if !strings.Contains(coloured, green+"ready"+reset) || !strings.Contains(coloured, red+"lost 3s"+reset) {
		t.Errorf("no colours: %q", coloured)
	}
	if strip := strings.NewReplacer(green, "", red, "", reset, "").Replace(coloured); strip != plain {
		t.Errorf("colours moved a column:\n%s\n%s", strip, plain)
	}
}

func TestWaitingIsABarOnATerminalAndLinesElsewhere(t *testing.T) {
	show := func(width int) string {
		var b bytes.Buffer
		m := &meter{w: &b, width: width}
		for _, s := range []struct {
			done int
			text string
		}{{0, "web: pending, 0 of 2"}, {0, "web: pending, 0 of 2"}, {1, "web: starting, 1 of 2; pulling\nan image of a long name"}, {2, "web: running, 2 of 2"}} {
			m.show(s.done, 2, s.text)
		}
		m.end()
		return b.String()
	}
	if got, want := show(0), "web: pending, 0 of 2\nweb: starting, 1 of 2; pulling\nan image of a long name\nweb: running, 2 of 2\n"; got != want {
		t.Errorf("elsewhere it reads %q, want %q", got, want)
	}
	const clear = "\r\x1b[K"
	want := clear + "[............] web: pending, 0 of 2" + clear + "[######......] web: starting, 1 of 2;…" +
		clear + "[############] web: running, 2 of 2" + clear + "web: running, 2 of 2\n"
	if got := show(40); got != want {
		t.Errorf("on a terminal it reads\n%q, want\n%q", got, want)
	}
}
