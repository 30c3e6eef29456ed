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
)

// cell is one kind of fault.
type cell struct {
	targets []target
	signal  unix.Signal
	// step in which it strikes: running for an instance at rest.
	step string
	// within is the time stated until the node is as it was promised.
	within time.Duration
}

func (c cell) String() string {
	var names []string
	for _, t := range c.targets {
		names = append(names, string(t))
	}
	sig := "SIGKILL"
	if c.signal == unix.SIGSTOP {
		sig = "SIGSTOP"
	}
	return fmt.Sprintf("%-19s %s in %s", strings.Join(names, " + "), sig, c.step)
}

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
)

func cells() []cell {
	var out []cell
	add := func(within time.Duration, sig unix.Signal, step string, targets ...target) {
		out = append(out, cell{targets: targets, signal: sig, step: step, within: within})
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
		}
	}
	for _, step := range []string{grace, reap, clear} {
		add(withinKilled, unix.SIGKILL, step, agent)
		add(withinHung, unix.SIGKILL, step, daemon)
		add(withinHung, unix.SIGKILL, step, agent, daemon)
		if step == grace {
			add(withinHung, unix.SIGKILL, step, shim)
			add(withinHung, unix.SIGKILL, step, sentry)
		}
	}
	return out
}

func (c cell) stopping() bool { return c.step == grace || c.step == reap || c.step == clear }

func (c cell) starting() bool { return c.step == network || c.step == create || c.step == launch }
