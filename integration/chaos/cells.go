package main

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// target is what a blow strikes.
type target string

const (
	server     target = "server" // one that does not lead
	leader     target = "leader"
	agent      target = "agent"
	daemon     target = "containerd"
	shim       target = "shim"
	sentry     target = "sentry"
	initial    target = "init" // the first process inside the sandbox
	supervisor target = "supervisor"
	machine    target = "node" // all of its processes, and nothing starts them again
	link       target = "link" // what joins a node to the others
)

// cell is one kind of fault.
type cell struct {
	targets []target
	signal  unix.Signal // 0: a link is cut
	// step in which it strikes: running for an instance at rest. What becomes
	// of a lost node's work is told by replace instead.
	step    string
	replace string
	// runtime is what the node runs its instances under; empty if no node is
	// struck.
	runtime string
	// within is the time stated until the node is as it was promised.
	within time.Duration
}

func (c cell) String() string {
	s := fmt.Sprintf("%-19s %s in %s", c.who(), c.how(), c.where())
	if c.runtime != "" {
		s += " under " + c.runtime
	}
	return s
}

func (c cell) who() string {
	var names []string
	for _, t := range c.targets {
		names = append(names, string(t))
	}
	return strings.Join(names, " + ")
}

func (c cell) how() string {
	switch c.signal {
	case 0:
		return "cut"
	case unix.SIGSTOP:
		return "SIGSTOP"
	}
	return "SIGKILL"
}

func (c cell) where() string {
	if c.lost() {
		return "replace: " + c.replace
	}
	return c.step
}

// lost: a node is gone for longer than its work waits for it.
func (c cell) lost() bool { return c.replace != "" }

func (c cell) has(targets ...target) bool {
	for _, t := range c.targets {
		for _, u := range targets {
			if t == u {
				return true
			}
		}
	}
	return false
}

// onNode: it strikes something of a node, maybe beside a server.
func (c cell) onNode() bool {
	return c.has(agent, daemon, shim, sentry, initial, supervisor, machine, link)
}

// silences: a blow of this kind may silence an instance that runs.
func (c cell) silences() bool {
	return c.has(shim, sentry, initial)
}

// held is how long a stopped process stays stopped.
const held = 2 * time.Second

// The times stated. They bear the machine on which these runs are made: two
// cores, shared by three nodes and three servers.
const (
	withinKilled  = 20 * time.Second
	withinStopped = 20 * time.Second
	// A killed shim or a hung one costs deadlines of the runtime's calls.
	withinHung = 60 * time.Second
	// From a node's loss until a replacement is heard, and from its return
	// until all is as promised. Of the first, 18 s are the rule of Safe.
	withinReplaced = 45 * time.Second
	withinBack     = 60 * time.Second
)

// What nodes run their instances under.
const (
	gvisor = "gvisor"
	runc   = "runc"
)

// cells are all kinds of faults, of nodes with these runtimes.
func cells(runtimes ...string) []cell {
	var out []cell
	add := func(within time.Duration, sig unix.Signal, step string, targets ...target) {
		k := cell{targets: targets, signal: sig, step: step, within: within}
		if !k.onNode() {
			out = append(out, k)
			return
		}
		for _, k.runtime = range runtimes {
			// The first process of a container of runc is no other than the
			// one that the host sees.
			if k.runtime != runc || !k.has(sentry) {
				out = append(out, k)
			}
		}
	}
	for _, t := range []target{server, leader, agent, daemon, supervisor, shim, sentry, initial} {
		add(withinKilled, unix.SIGKILL, running, t)
		within := withinStopped
		if t == shim || t == sentry || t == daemon {
			within = withinHung
		}
		add(within, unix.SIGSTOP, running, t)
	}
	for _, pair := range [][2]target{
		{agent, daemon}, {agent, shim}, {agent, sentry}, {agent, initial}, {agent, supervisor}, {daemon, shim}, {daemon, sentry},
		{shim, sentry}, {leader, agent}, {leader, daemon}, {leader, sentry}, {server, agent}, {leader, server},
	} {
		add(withinHung, unix.SIGKILL, running, pair[:]...)
	}
	for _, step := range []string{network, create, launch, grace, reap, clear} {
		add(withinStopped, unix.SIGSTOP, step, agent)
		add(withinHung, unix.SIGSTOP, step, daemon)
	}
	for _, step := range []string{network, create, launch} {
		add(withinKilled, unix.SIGKILL, step, agent)
		add(withinHung, unix.SIGKILL, step, daemon)
		add(withinHung, unix.SIGKILL, step, agent, daemon)
		if step != network {
			add(withinHung, unix.SIGKILL, step, shim)
		}
		if step == launch {
			add(withinHung, unix.SIGKILL, step, sentry)
			add(withinHung, unix.SIGKILL, step, initial)
		}
	}
	for _, step := range []string{grace, reap, clear} {
		add(withinKilled, unix.SIGKILL, step, agent)
		add(withinHung, unix.SIGKILL, step, daemon)
		add(withinHung, unix.SIGKILL, step, agent, daemon)
		if step == grace {
			add(withinHung, unix.SIGKILL, step, shim)
			add(withinHung, unix.SIGKILL, step, sentry)
			add(withinHung, unix.SIGKILL, step, initial)
		}
	}
	for _, replace := range []string{"Eager", "Safe", "Never"} {
		k := cell{step: running, replace: replace, runtime: gvisor, within: withinReplaced + withinBack}
		k.targets, k.signal = []target{machine}, unix.SIGKILL
		out = append(out, k)
		k.targets, k.signal = []target{link}, 0
		out = append(out, k)
	}
	return out
}

func (c cell) stopping() bool { return c.step == grace || c.step == reap || c.step == clear }

func (c cell) starting() bool { return c.step == network || c.step == create || c.step == launch }
