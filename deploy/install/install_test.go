package install

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"redoubt.dev/redoubt/deploy/systemd"
)

// host is an empty root with a program beside it.
func host(t *testing.T) Options {
	t.Helper()
	from := filepath.Join(t.TempDir(), "redoubt")
	if err := os.WriteFile(from, []byte("program 1"), 0o700); err != nil {
		t.Fatal(err)
	}
	return Options{
		Host: Host{Root: t.TempDir()}, Daemon: Agent, From: from, About: "about",
		Pages: map[string][]byte{ManDir + "/redoubt.1": []byte("page"), Bash: []byte("complete")},
	}
}

func install(t *testing.T, o Options) []Step {
	t.Helper()
	steps, err := Install(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(t.Context(), steps, func(Step) {}); err != nil {
		t.Fatal(err)
	}
	return steps
}

// changes are the steps that changed something, as "verb what".
func changes(steps []Step) (out []string) {
	for _, s := range steps {
		if s.Changes() {
			out = append(out, string(s.Verb)+" "+s.What)
		}
	}
	return out
}

// tree lists what is below a root, with modes.
func tree(t *testing.T, root string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		out = append(out, strings.TrimPrefix(path, root)+" "+info.Mode().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnInstallIsWholeAndASecondChangesNothing(t *testing.T) {
	o := host(t)
	o.Settings = Settings{"address": {"10.0.0.7"}, "label": {"disk=ssd", "rack=4"}}
	install(t, o)
	want := []string{
		"/etc/redoubt/agent.yml -rw-------",
		"/etc/systemd/system/redoubt-agent.service -rw-r--r--",
		"/usr/local/bin/redoubt -rwxr-xr-x",
		"/usr/local/share/bash-completion/completions/redoubt -rw-r--r--",
		"/usr/local/share/man/man1/redoubt.1 -rw-r--r--",
	}
	if got := tree(t, o.Root); !slices.Equal(got, want) {
		t.Errorf("it left %q, want %q", got, want)
	}
	if info, err := os.Stat(filepath.Join(o.Root, Agent.Data)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory: %v, %v", info, err)
	}
	if got := changes(install(t, o)); got != nil {
		t.Errorf("run again it did %q", got)
	}
	o.Settings = nil
	if got := changes(install(t, o)); got != nil {
		t.Errorf("run again without settings it did %q", got)
	}
}

func TestAPlanAloneTouchesNothing(t *testing.T) {
	o := host(t)
	o.Join = &Step{Verb: "join", What: "a fleet", do: func(context.Context) error { return errors.New("it was done") }}
	if _, err := Install(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, o.Root); got != nil {
		t.Errorf("a plan made %q", got)
	}
}

func TestAnInstallUpgradesAndMends(t *testing.T) {
	o := host(t)
	install(t, o)
	old, err := os.Open(filepath.Join(o.Root, Program))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for path, text := range map[string]string{o.From: "program 2", filepath.Join(o.Root, UnitDir, Agent.Unit): "broken"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]fs.FileMode{Agent.Data: 0o755, Agent.Config: 0o644} {
		if err := os.Chmod(filepath.Join(o.Root, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	// What an install left that was killed while it wrote.
	if err := os.WriteFile(filepath.Join(o.Root, "/usr/local/bin/.redoubt.new-123"), []byte("hal"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"replace " + Program, "mend " + Agent.Config, "mend " + Agent.Data + "/", "replace " + UnitDir + "/" + Agent.Unit}
	if got := changes(install(t, o)); !slices.Equal(got, want) {
		t.Errorf("it did %q, want %q", got, want)
	}
	if got := tree(t, o.Root); len(got) != 5 {
		t.Errorf("it left %q", got)
	}
	// The running program's file is not written into: it is another now.
	b := make([]byte, 16)
	if n, _ := old.Read(b); string(b[:n]) != "program 1" {
		t.Errorf("the old program's file reads %q", b[:n])
	}
}

func TestTheOperatorsConfigurationIsKept(t *testing.T) {
	o := host(t)
	o.Settings = Settings{"site": {"oslo"}}
	install(t, o)
	o.Settings = Settings{"label": {"a=b"}}
	if got := changes(install(t, o)); !slices.Equal(got, []string{"replace " + Agent.Config}) {
		t.Errorf("an untouched file is not brought up to date: %q", got)
	}
	path := filepath.Join(o.Root, Agent.Config)
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), "site: oslo\n") || !strings.Contains(string(text), "label: a=b\n") {
		t.Fatalf("it reads %s, %v", text, err)
	}
	changed := strings.Replace(string(text), "oslo", "lab", 1)
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Settings = Settings{"site": {"oslo"}, "label": {"a=b"}, "address": {"10.0.0.7"}}
	steps := install(t, o)
	if got := changes(steps); got != nil {
		t.Errorf("it did %q", got)
	}
	if text, _ := os.ReadFile(path); string(text) != changed {
		t.Errorf("a file that was changed by hand was written over:\n%s", text)
	}
	i := slices.IndexFunc(steps, func(s Step) bool { return s.What == Agent.Config })
	if steps[i].Verb != Keep || !strings.Contains(steps[i].Note, "address: 10.0.0.7; site: oslo") {
		t.Errorf("it says %s %q", steps[i].Verb, steps[i].Note)
	}
	if err := os.WriteFile(path, []byte("site: [oslo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), o); err == nil || !strings.Contains(err.Error(), "agent.yml") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestSettingsAreReadAsTheyWereWritten(t *testing.T) {
	give := Settings{
		"a": {"0"}, "b": {"true"}, "c": {"5s"}, "d": {"x: y # z"}, "e": {"- a", "{b}", "'c"}, "f": {""}, "g": {"two\nlines"}, "h": {"~"}, "i": {"@x", "%y", "&z"},
	}
	text, err := render("about\n", give)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSettings(text)
	if err != nil || !reflect.DeepEqual(got, give) {
		t.Errorf("read as %v, %v of\n%s", got, err, text)
	}
	if !untouched(text) || untouched(append(text, '\n')) || untouched([]byte("a: 1\n")) {
		t.Error("a changed file counts as untouched, or the other way round")
	}
}

func TestAnUninstallLeavesNothing(t *testing.T) {
	o := host(t)
	install(t, o)
	both := o
	both.Daemon = Server
	install(t, both)
	if err := os.WriteFile(filepath.Join(o.Root, Agent.Data, "state"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	uninstall := func(o Options) {
		t.Helper()
		steps, err := Uninstall(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := Apply(t.Context(), steps, func(Step) {}); err != nil {
			t.Fatal(err)
		}
	}
	uninstall(o)
	if !o.There(Agent.Data+"/state") || !o.There(Agent.Config) || o.There(UnitDir+"/"+Agent.Unit) || !o.There(Program) {
		t.Errorf("without purge, beside a server, it left %q", tree(t, o.Root))
	}
	o.Purge, both.Purge = true, true
	uninstall(o)
	if !o.There(Program) || !o.There(Server.Config) || o.There(Agent.Data) {
		t.Errorf("beside a server a purge left %q", tree(t, o.Root))
	}
	uninstall(both)
	if got := tree(t, o.Root); got != nil || o.There(ConfigDir) || o.There(DataDir) || o.There(ManDir) {
		t.Errorf("it left %q", got)
	}
	uninstall(both) // again, with nothing there
}

// calls is a systemctl that notes what it was asked.
type calls struct {
	did    []string
	active bool
	fail   string
}

func (c *calls) run(_ context.Context, args ...string) (string, error) {
	if args[0] == "is-active" || args[0] == "is-enabled" {
		if c.active {
			return "", nil
		}
		return "", errors.New("inactive")
	}
	c.did = append(c.did, args[0])
	if args[0] == c.fail {
		return "", errors.New("it failed")
	}
	c.active = args[0] != "disable"
	return "", nil
}

func TestADaemonIsRestartedOnlyIfSomethingChanged(t *testing.T) {
	o := host(t)
	c := &calls{}
	o.Systemctl = c.run
	for i, step := range []struct {
		change func()
		want   []string
	}{
		{func() {}, []string{"daemon-reload", "enable"}},
		{func() {}, nil},
		{func() { os.WriteFile(o.From, []byte("program 2"), 0o700) }, []string{"restart"}},
		{func() { o.Settings = Settings{"site": {"lab"}} }, []string{"restart"}},
		{func() { os.Remove(filepath.Join(o.Root, Bash)) }, nil},
		{func() { c.active = false }, []string{"enable"}},
	} {
		step.change()
		c.did = nil
		install(t, o)
		if !slices.Equal(c.did, step.want) {
			t.Errorf("case %d: systemctl %q, want %q", i, c.did, step.want)
		}
	}
	c.did, c.fail, o.Purge = nil, "disable", true
	steps, err := Uninstall(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(t.Context(), steps, func(Step) {}); err == nil || !o.There(Agent.Config) || !o.There(Agent.Data) {
		t.Errorf("it went on though the daemon did not stop: %v", err)
	}
}

func TestUnitsAreGood(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not here: the units are not verified")
	}
	dir := t.TempDir()
	for _, d := range []Daemon{Agent, Server} {
		text, err := systemd.Unit(d.Unit)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, "\nExecStart="+d.Command()+"\n") {
			t.Errorf("%s does not start %q", d.Unit, d.Command())
		}
		// A program that is there, or the check stops at that.
		text = strings.Replace(text, "ExecStart="+Program, "ExecStart=/bin/true", 1)
		path := filepath.Join(dir, d.Unit)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", d.Unit, err, out)
		}
	}
}
