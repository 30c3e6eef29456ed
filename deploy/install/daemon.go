package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"redoubt.dev/redoubt/deploy/systemd"
)

// Daemon is one of the two that a host can run.
type Daemon struct {
	Name   string // agent or server
	Unit   string
	Config string // its configuration file
	Data   string // its data directory
}

// The daemons.
var (
	Agent  = Daemon{"agent", systemd.AgentUnit, ConfigDir + "/agent.yml", DataDir + "/agent"}
	Server = Daemon{"server", systemd.ServerUnit, ConfigDir + "/server.yml", DataDir + "/server"}
)

// Command is how the daemon is started by hand.
func (d Daemon) Command() string { return Program + " " + d.Name + " --config " + d.Config }

func (d Daemon) other() Daemon {
	if d == Agent {
		return Server
	}
	return Agent
}

// Systemctl runs systemctl and returns what it printed.
type Systemctl func(ctx context.Context, args ...string) (string, error)

// HostSystemctl runs the host's.
func HostSystemctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("%w: %s", err, text)
	}
	return text, nil
}

// Options of an install or uninstall.
type Options struct {
	Host
	Daemon   Daemon
	From     string // the program's file
	Settings Settings
	About    string // the head of a new configuration file
	// Pages are further files, as man pages and completions, by path.
	Pages map[string][]byte
	// Join makes the data directory a member's, where it is none.
	Join *Step
	// Systemctl starts and stops; nil: nothing is started or stopped.
	Systemctl Systemctl

	// Purge takes the data and the configuration away too, after End.
	Purge bool
	// End ends what the daemon runs on the host.
	End *Step
}

// Install plans an install.
func Install(ctx context.Context, o Options) ([]Step, error) {
	unit, err := systemd.Unit(o.Daemon.Unit)
	if err != nil {
		return nil, err
	}
	p := planner{}
	p.add(o.CopyProgram(o.From))
	p.add(o.Directory(ConfigDir, 0o755))
	p.add(o.Host.Config(o.Daemon.Config, o.About, o.Settings))
	p.add(o.Directory(DataDir, 0o755))
	p.add(o.Directory(o.Daemon.Data, 0o700))
	if p.err == nil && o.Join != nil {
		p.steps = append(p.steps, *o.Join)
	}
	unitStep, err := o.File(UnitDir+"/"+o.Daemon.Unit, 0o644, []byte(unit))
	p.add(unitStep, err)
	changed := slices.ContainsFunc(p.steps, func(s Step) bool {
		return s.Changes() && slices.Contains([]string{Program, o.Daemon.Config, unitStep.What}, s.What)
	})
	for _, path := range slices.Sorted(maps.Keys(o.Pages)) {
		s, err := o.File(path, 0o644, o.Pages[path])
		s.Content = nil
		p.add(s, err)
	}
	if p.err != nil || o.Systemctl == nil {
		return p.steps, p.err
	}
	command := func(note string, args ...string) {
		p.steps = append(p.steps, Action(Run, "systemctl "+strings.Join(args, " "), note, func(ctx context.Context) error {
			_, err := o.Systemctl(ctx, args...)
			return err
		}))
	}
	if unitStep.Changes() {
		command("", "daemon-reload")
	}
	is := func(what string) bool {
		_, err := o.Systemctl(ctx, what, "--quiet", o.Daemon.Unit)
		return err == nil
	}
	active := is("is-active")
	if !active || !is("is-enabled") {
		command("starts it now, and when the host starts", "enable", "--now", o.Daemon.Unit)
	}
	if active && changed {
		command("what it runs goes on running", "restart", o.Daemon.Unit)
	}
	return p.steps, ctx.Err()
}

// Uninstall plans an uninstall. The program goes with the last daemon.
func Uninstall(ctx context.Context, o Options) ([]Step, error) {
	unitPath := UnitDir + "/" + o.Daemon.Unit
	var steps []Step
	add := func(s ...Step) { steps = append(steps, s...) }
	there := o.There(unitPath)
	if o.Systemctl != nil && there {
		add(Action(Run, "systemctl disable --now "+o.Daemon.Unit, "", func(ctx context.Context) error {
			_, err := o.Systemctl(ctx, "disable", "--now", o.Daemon.Unit)
			return err
		}))
	}
	if o.Purge && o.End != nil {
		add(*o.End)
	}
	add(o.Absent(unitPath))
	if o.Systemctl != nil && there {
		add(Action(Run, "systemctl daemon-reload", "", func(ctx context.Context) error {
			_, err := o.Systemctl(ctx, "daemon-reload")
			return err
		}))
	}
	if o.Purge {
		add(o.AbsentTree(o.Daemon.Data), o.Absent(o.Daemon.Config))
	} else {
		for _, path := range []string{o.Daemon.Data, o.Daemon.Config} {
			if o.There(path) {
				add(Step{Verb: Keep, What: path, Note: "--purge would remove it"})
			}
		}
	}
	if other := o.Daemon.other(); o.There(UnitDir + "/" + other.Unit) {
		add(Step{Verb: Keep, What: Program, Note: "the " + other.Name + " of this host runs it"})
	} else {
		for _, pattern := range PagePatterns {
			for _, path := range o.Match(pattern) {
				add(o.Absent(path))
			}
		}
		add(o.Absent(Program))
		for _, dir := range pageDirs {
			if o.There(dir) {
				add(o.AbsentIfEmpty(dir))
			}
		}
	}
	add(o.AbsentIfEmpty(ConfigDir), o.AbsentIfEmpty(DataDir))
	return steps, ctx.Err()
}

// Where pages lie; PagePatterns match all that any version has put there.
const (
	ManDir = "/usr/local/share/man/man1"
	Bash   = "/usr/local/share/bash-completion/completions/redoubt"
	Zsh    = "/usr/local/share/zsh/site-functions/_redoubt"
	Fish   = "/usr/local/share/fish/vendor_completions.d/redoubt.fish"
)

// PagePatterns are the files that Options.Pages may hold.
var PagePatterns = []string{ManDir + "/redoubt.1", ManDir + "/redoubt-*.1", Bash, Zsh, Fish}

// pageDirs are the directories of pages, inner ones first, that an install may
// have had to make.
var pageDirs = []string{
	ManDir, "/usr/local/share/bash-completion/completions", "/usr/local/share/bash-completion",
	"/usr/local/share/zsh/site-functions", "/usr/local/share/zsh",
	"/usr/local/share/fish/vendor_completions.d", "/usr/local/share/fish",
}

// planner gathers steps until the first that cannot be planned.
type planner struct {
	steps []Step
	err   error
}

func (p *planner) add(s Step, err error) {
	p.err = errors.Join(p.err, err)
	p.steps = append(p.steps, s)
}
