// Command demo brings up a whole fleet on one host, shows what it can do, harms
// it, judges every step, and takes all of it away again. `make demo` runs it.
//
// It prints the commands that a person would type, with what they answered, so
// that it reads as a tutorial. A step that does not come out as promised ends
// it with code 1, what was expected and what was seen, and the ends of the
// daemons' logs. SIGINT, SIGTERM, SIGHUP and a closed terminal end it with the
// same teardown; after a SIGKILL the next run cleans up first.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
)

func main() { os.Exit(run()) }

func run() int {
	keep := flag.Bool("keep", false, "leave the fleet up at the end and say how to talk to it")
	stop := flag.Bool("stop", false, "stop a fleet that was left up, and nothing else")
	dir := flag.String("dir", ".demo", "where the fleet keeps its data")
	prefix := flag.String("prefix", "rd-demo", "begins the names of network namespaces")
	network := flag.Uint("net", 77, "the second number of the fleet's network, 10.N.0.0/16")
	ttl := flag.Duration("svid-ttl", 20*time.Second, "how long identities last")
	lost := flag.Duration("lost-after", 10*time.Second, "how long a node may be silent before its work is replaced")
	cut := flag.Duration("cut", 21*time.Second, "how long a site is cut off; longer than both")
	examples := flag.String("examples", "examples", "the folder with web.yml, batch.yml and vault.yml")
	flag.Parse()

	s := newShow(os.Stdout)
	if os.Getuid() != 0 {
		return s.fail(errors.New("the demo needs root: it makes network namespaces, mounts and control groups, and removes them again"))
	}
	if *cut <= *ttl || *cut <= *lost || *network < 1 || *network > 254 {
		return s.fail(fmt.Errorf("-cut %v must be longer than -svid-ttl %v and -lost-after %v, and -net between 1 and 254", *cut, *ttl, *lost))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer cancel()

	f, err := fleet.New(fleet.Config{
		Clone: ".", Binary: filepath.Join("bin", "redoubt"), Dir: *dir,
		SVIDTTL: *ttl, Heartbeat: time.Second,
		Plan: topology.Plan{
			Prefix: *prefix, Net: byte(*network), Servers: []string{"s1", "s2", "s3"},
			Sites: []topology.Site{{Name: "oslo", Nodes: []string{"oslo-1", "oslo-2"}}, {Name: "lab", Nodes: []string{"lab-1", "lab-2"}}},
		},
	})
	if errors.Is(err, fleet.ErrInUse) {
		return s.fail(fmt.Errorf("%w: wait for its end, or interrupt it with ^C", err))
	}
	if err != nil {
		return s.fail(err)
	}
	defer f.Close()
	d := &demo{show: s, fleet: f, begun: time.Now(), lostAfter: *lost, cut: *cut, examples: *examples}
	if *stop && !f.Left() {
		s.note("No demo is up.")
		return 0
	}
	if f.Left() {
		s.note("A fleet of an earlier run is still here; stopping it.")
		if _, err := f.Down(ctx); err != nil {
			return s.fail(err)
		}
		if *stop {
			s.note("It is stopped, and nothing of it is left.")
			return s.end(f.Clear())
		}
	}
	return d.perform(ctx, *keep)
}

// attempt runs the steps. A mistake of the demo itself must not leave a fleet
// behind either.
func (d *demo) attempt(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the demo itself is broken: %v\n%s", r, debug.Stack())
		}
	}()
	return d.steps(ctx)
}

// perform runs the steps, then takes the fleet down unless it is to be kept.
func (d *demo) perform(ctx context.Context, keep bool) int {
	err := d.attempt(ctx)
	if err == nil && keep {
		d.farewell()
		return 0
	}
	interrupted := ctx.Err() != nil
	switch {
	case interrupted:
		d.note("\nInterrupted: stopping everything.")
	case err != nil:
		d.failure(err)
	default:
		d.headline("Stop everything")
	}
	begun := time.Now()
	forced, downErr := d.fleet.Down(ctx)
	if downErr != nil {
		d.fail(downErr)
	}
	if left := topology.Present(d.fleet.Plan()); len(left) > 0 {
		downErr = errors.Join(downErr, d.judge("nothing of the fleet is left", left))
	}
	switch {
	case downErr != nil:
		return 1
	case interrupted:
		d.note("Stopped in %s; nothing is left.", seconds(time.Since(begun)))
		_ = d.fleet.Clear()
		return 130
	case err != nil:
		d.note("Stopped. The logs are in %s.", d.fleet.Path("logs"))
		return 1
	case len(forced) > 0:
		d.failure(d.judge("servers and agents leave nothing when they are told to go", forced))
		return 1
	}
	d.ok("Stopped in %s: processes, mounts, namespaces, links, rules and control groups are gone.", seconds(time.Since(begun)))
	if err := d.fleet.Clear(); err != nil {
		return d.fail(err)
	}
	d.summary()
	return 0
}
