package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "supervise" {
		if err := supervise(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "supervisor:", err)
			os.Exit(1)
		}
		return
	}
	long := flag.Duration("t", time.Minute, "for how long faults are made")
	least := flag.Int("least", -1, "how many faults each cell must have had; by default five in a run of twenty minutes, none in a shorter one")
	total := flag.Int("faults", -1, "how many faults there must have been in all; by default one for every three seconds, and 500 in twenty minutes")
	dir := flag.String("dir", ".chaos", "where the fleet keeps its data")
	evidence := flag.String("evidence", "", "a `FILE` for every fault as a line of JSON")
	page := flag.String("page", "", "a Markdown `FILE` in which the table between the marks "+pageFrom+" and "+pageTo+" is replaced")
	verbose := flag.Bool("v", false, "tell every fault as it is made")
	flag.Parse()
	if *least < 0 {
		*least = int(*long/(20*time.Minute)) * 5
	}
	if *total < 0 {
		*total = max(int(*long/(3*time.Second)), int(*long/(20*time.Minute))*500)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	level := slog.LevelError
	if *verbose {
		level = slog.LevelInfo
	}
	c := &chaos{
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), cells: cells(gvisor, runc),
		count: map[string]int{}, going: map[string]int{}, missed: map[string]int{}, hosts: map[string]*host{},
	}
	took, err := c.harm(ctx, *dir, *long, *least)
	if err == nil {
		r := c.reckon(took, *least, *total)
		r.print(os.Stdout)
		err = r.err()
		if *page != "" {
			err = errors.Join(err, r.page(*page))
		}
	}
	if *evidence != "" {
		err = errors.Join(err, c.keep(*evidence))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// harm brings a fleet up, harms it for so long, judges, and takes it away. It
// goes on for at most half as long again until each cell had least faults, and
// tells for how long it did.
func (c *chaos) harm(ctx context.Context, dir string, long time.Duration, least int) (took time.Duration, err error) {
	if os.Getuid() != 0 {
		return 0, errors.New("it needs root: it makes network namespaces and kills what runs in them")
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return 0, err
	}
	plan := topology.Plan{Prefix: "rd-cha", Net: 81, Servers: []string{"s1", "s2", "s3"}}
	for _, site := range []string{"bodo", "molde", "tromso", "vardo"} {
		plan.Sites = append(plan.Sites, topology.Site{Name: site, Nodes: []string{site + "-1"}})
	}
	plan.Sites = append(plan.Sites, topology.Site{Name: spare, Nodes: []string{spare + "-1", spare + "-2"}})
	// What runs under gVisor there runs under runc here, since it is all there is.
	offers := map[string][]string{"tromso-1": {runc}, "vardo-1": {runc}}
	c.Fleet, err = fleet.New(fleet.Config{
		Clone: ".", Binary: filepath.Join("bin", "redoubt"), Dir: dir, SVIDTTL: time.Hour, Heartbeat: time.Second, Plan: plan,
		Supervisor: []string{self, "supervise"},
		Allow:      offers,
		AgentArgs:  []string{"--allow-host-path", filepath.Join(abs, "beacon"), "--allow-host-path", filepath.Join(abs, "heard")},
	})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if c.Left() {
		if _, err := c.Down(ctx); err != nil {
			return 0, err
		}
	}
	defer func() {
		forced, e := c.Down(context.WithoutCancel(ctx))
		for _, f := range forced {
			c.say("at the end this had to be removed by force: %s", f)
		}
		err = errors.Join(err, e)
	}()
	dirs := map[string]string{}
	for _, n := range plan.Nodes() {
		if c.hosts[n], err = c.open(n, offers[n]); err != nil {
			return 0, err
		}
		dirs[c.hosts[n].site] = c.hosts[n].runs
	}
	c.rec = newRecorder(dirs)
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(abs, "beacon", "beacon"), "./integration/chaos/beacon")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the beacon: %w: %s", err, out)
	}
	if err := c.Up(ctx); err != nil {
		return 0, err
	}
	steady := map[string]string{}
	for n, h := range c.hosts {
		if h.site != spare {
			if steady[n], err = c.begin(ctx, h); err != nil {
				return 0, err
			}
		}
		if h.before, err = c.estate(h); err != nil {
			return 0, err
		}
	}

	begun := time.Now()
	most := long
	if least > 0 {
		most += long / 2
	}
	over, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() {
		rest(over, long)
		for over.Err() == nil && c.fewest() < least {
			rest(over, time.Second)
		}
		took = time.Since(begun).Round(time.Second)
		cancel()
	})
	for n, h := range c.hosts {
		if h.site != spare {
			all.Go(func() { c.harmNode(ctx, over, h, steady[n]) })
		}
	}
	all.Go(func() { c.loseNodes(ctx, over) })
	all.Go(func() { c.harmServers(ctx, over) })
	all.Wait()
	if ctx.Err() != nil {
		return 0, errors.New("interrupted")
	}
	for _, h := range c.hosts {
		all.Go(func() { c.leavings(ctx, h, h.before) })
	}
	all.Wait()
	c.conclude()
	return took, nil
}

// begin applies the workload that runs on a node all along.
func (c *chaos) begin(ctx context.Context, h *host) (uid string, err error) {
	name := "steady-" + h.node
	w, err := c.file(name, h, "{ replace: Eager, lostAfter: 5m }")
	if err != nil {
		return "", err
	}
	from, err := c.apply(ctx, w)
	if err != nil {
		return "", err
	}
	c.promises = append(c.promises, promise{workload: name, from: from, within: withinStart})
	if !until(withinStart, 50*time.Millisecond, func() bool {
		for _, s := range c.rec.look("") {
			if s.site == h.site {
				uid = s.uid
			}
		}
		return uid != ""
	}) {
		return "", fmt.Errorf("%s was not heard within %v", name, withinStart)
	}
	return uid, nil
}

// conclude holds all that was heard against all that was promised.
func (c *chaos) conclude() {
	end := time.Now()
	heard := c.rec.look("")
	byWorkload := map[string][]start{}
	for _, s := range heard {
		// An instance's name is its workload's with a number.
		name := s.instance[:strings.LastIndexByte(s.instance, '-')]
		byWorkload[name] = append(byWorkload[name], s)
	}
	for _, bad := range c.rec.bad {
		c.say("recorder: %s", bad)
	}
	for _, v := range judge(byWorkload, c.promises, c.blows, c.losses, end) {
		c.say("%s", v)
	}
	var along []promise
	for _, p := range c.promises {
		if strings.HasPrefix(p.workload, "steady-") {
			along = append(along, p)
		}
	}
	for _, v := range traffic(byWorkload, along, end) {
		c.say("%s", v)
	}
}
