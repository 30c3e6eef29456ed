package net

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"redoubt.dev/redoubt/integration/net/attack"
	"redoubt.dev/redoubt/integration/net/topology"
)

// The promises, as the table names them.
const (
	neighbours = "neighbours are closed, but to whom they let in"
	hostPorts  = "the host's ports, agent and sockets are closed"
	cloud      = "a cloud's metadata is closed"
	egress     = "egress goes where the rules say, and is counted"
	resolving  = "names are those that the asker may reach"
	published  = "published ports are reached, and nothing else from outside"
	forging    = "nothing forged leaves an instance"
	flooding   = "a flood of connections does not hurt neighbours"
	flushing   = "what was flushed comes back"
)

// case is a probe with what must come of it.
type attempt struct {
	promise string
	attack.Probe
	through bool
	answer  string // what the answer must have in it
}

// reach tries every connection that is forbidden, beside those that are not.
func (f *front) reach() {
	f.t.Helper()
	victim, friend := f.at["victim"].address.String(), f.at["friend"].address.String()
	gw, node := f.gateway.String(), f.ip()
	const zone = ".default.redoubt"
	before := f.egressCounts()

	var list []attempt
	add := func(promise, kind, to string, through bool, more ...string) {
		a := attempt{promise: promise, through: through, Probe: attack.Probe{Name: fmt.Sprintf("%d %s %s", len(list), kind, strings.Join(append(more, to), " at ")), Kind: kind, To: to, Patience: 1200 * time.Millisecond}}
		if through {
			a.Patience = 15 * time.Second
		}
		if len(more) > 0 {
			a.Query = more[0]
		}
		if len(more) > 1 {
			a.answer = more[1]
		}
		list = append(list, a)
	}
	tell := func(role string) {
		f.t.Helper()
		f.attempt(role, list)
		list = nil
	}

	for _, at := range []string{attack.TCP, attack.UDP, attack.Fragment} {
		add(neighbours, at, victim+":8000", false)
		add(neighbours, at, friend+":8000", true)
	}
	add(neighbours, attack.TCP, victim+":8001", false)
	add(neighbours, attack.Ping, victim, false)
	add(neighbours, attack.Ping, friend, true)
	add(published, attack.TCP, node+":18000", true, "", "victim")
	add(published, attack.TCP, node+":18001", true, "", "victim")
	add(published, attack.TCP, gw+":18000", false)
	add(published, attack.TCP, node+":18002", false)
	for _, host := range []string{gw, node, "127.0.0.1", "[::1]"} {
		add(hostPorts, attack.TCP, host+":2222", false)
		add(hostPorts, attack.UDP, host+":2222", false)
		add(hostPorts, attack.TCP, host+":7453", false)
		add(hostPorts, attack.UDP, host+":7453", false)
	}
	add(hostPorts, attack.Ping, gw, true)
	sockets, err := filepath.Glob("/run/redoubt/*/*.sock")
	f.must(err)
	if len(sockets) == 0 {
		f.t.Error("no socket of a containerd is found on this host: nothing to attack")
	}
	for _, s := range append(sockets, "/run/containerd/containerd.sock", "/run/docker.sock", "@redoubt-attack-"+f.node) {
		add(hostPorts, attack.Socket, s, false)
	}
	for _, m := range metadata {
		add(cloud, attack.TCP, m+":80", false)
		add(cloud, attack.UDP, m+":80", false)
		add(cloud, attack.Ping, m, false)
	}
	add(cloud, attack.TCP, "["+metadata6+"]:80", false)
	add(cloud, attack.TCP, beyond+":80", true)
	add(cloud, attack.UDP, beyond+":80", true)
	add(cloud, attack.Ping, beyond, true)
	add(resolving, attack.Name, gw+":53", true, "friend-"+f.site+zone, friend)
	add(resolving, attack.Name, gw+":53", true, "attacker-"+f.site+zone, f.at["attacker"].address.String())
	for _, name := range []string{"victim-" + f.site + zone, "nobody" + zone, "redoubt", "default.redoubt",
		strings.Repeat("a", 63) + zone, strings.TrimSuffix(strings.Repeat("a.", 110), ".") + zone, "*" + zone} {
		add(resolving, attack.Name, gw+":53", false, name)
	}
	add(resolving, attack.Transfer, gw+":53", false, "redoubt.")
	add(resolving, attack.Transfer, gw+":53", false, "default.redoubt.")
	tell("attacker")

	// Let in is one direction.
	add(neighbours, attack.TCP, f.at["attacker"].address.String()+":8000", false)
	add(resolving, attack.Name, gw+":53", false, "attacker-"+f.site+zone)
	tell("friend")

	add(egress, attack.TCP, beyond+":80", true)
	add(egress, attack.TCP, beyond+":8001", true)
	add(egress, attack.UDP, barred+":53", true)
	add(egress, attack.Fragment, barred+":53", true)
	add(egress, attack.TCP, beyond+":81", false)
	add(egress, attack.UDP, beyond+":80", false)
	add(egress, attack.Fragment, barred+":80", false)
	add(egress, attack.Ping, beyond, false)
	add(egress, attack.TCP, barred+":80", false)
	add(egress, attack.TCP, node+":18000", false) // a published port is not named
	add(egress, attack.TCP, friend+":8000", false)
	add(cloud, attack.TCP, metadata[0]+":80", false) // named, and closed all the same
	add(resolving, attack.Name, gw+":53", false, "friend-"+f.site+zone)
	tell("limited")

	add(egress, attack.TCP, beyond+":80", false)
	add(egress, attack.UDP, barred+":53", false)
	add(egress, attack.TCP, node+":18000", false)
	add(resolving, attack.Name, gw+":53", false, "secret.example.org")
	add(resolving, attack.Name, gw+":53", true, "silent-"+f.site+zone)
	tell("silent")

	f.counted(before)
	f.fromOutside(victim, node)
}

// attempt makes the attempts from inside an instance, and judges.
func (f *front) attempt(role string, list []attempt) {
	f.t.Helper()
	var probes []attack.Probe
	for _, a := range list {
		probes = append(probes, a.Probe)
	}
	for i, r := range inside[[]attack.Result](f, role, "try", probes) {
		a := list[i]
		v := verdict{promise: a.promise, what: role + ": " + r.Name, control: a.through, held: r.Reached == a.through}
		switch {
		case a.through:
			v.how = r.Error
			if v.held && !strings.Contains(r.Answer, a.answer) {
				v.held, v.how = false, fmt.Sprintf("the answer is %q", r.Answer)
			}
		case r.Reached:
			v.how = fmt.Sprintf("it is reached and says %q", r.Answer)
		default:
			v.inside = r.Inside
		}
		f.judge(v)
	}
}

// fromOutside sees what the network around can reach, and that all that was
// refused inside was there to be reached.
func (f *front) fromOutside(victim, node string) {
	f.t.Helper()
	f.must(topology.In(f.router(), func() error {
		for _, p := range []attack.Probe{{Kind: attack.TCP, To: victim + ":8000"}, {Kind: attack.UDP, To: victim + ":8000"}, {Kind: attack.Ping, To: victim}} {
			p.Patience = time.Second
			r := p.Try()
			f.judge(verdict{promise: published, what: "from outside: " + p.Kind + " " + p.To, held: !r.Reached, how: r.Answer})
		}
		return nil
	}))
	f.control(published, "from outside", attack.Probe{Kind: attack.TCP, To: node + ":18000"}, f.router())
	f.control(hostPorts, "a port of the host, from outside", attack.Probe{Kind: attack.TCP, To: node + ":2222"}, f.router())
	f.control(hostPorts, "a port of the host by UDP, from outside", attack.Probe{Kind: attack.UDP, To: node + ":2222"}, f.router())
	f.control(hostPorts, "a socket of the host, from there", attack.Probe{Kind: attack.Socket, To: "@redoubt-attack-" + f.node}, f.host())
	f.control(neighbours, "the neighbour by UDP, from the host", attack.Probe{Kind: attack.UDP, To: victim + ":8000"}, f.host())
	f.control(neighbours, "the neighbour's second port, from the host", attack.Probe{Kind: attack.TCP, To: victim + ":8001"}, f.host())
	f.control(neighbours, "ping of the neighbour, from the host", attack.Probe{Kind: attack.Ping, To: victim, Name: "ping"}, f.host())
	f.control(egress, "what a rule bars, from the host", attack.Probe{Kind: attack.TCP, To: barred + ":80"}, f.host())
	f.control(egress, "a port that no rule names, from the host", attack.Probe{Kind: attack.TCP, To: beyond + ":81"}, f.host())
	for _, m := range metadata {
		f.control(cloud, m+" from the host", attack.Probe{Kind: attack.TCP, To: m + ":80"}, f.host())
	}
	f.control(cloud, metadata6+" from the host", attack.Probe{Kind: attack.TCP, To: "[" + metadata6 + "]:80"}, f.host())
}

// egressCounts are the counters of the limited instance's rules, by comment.
func (f *front) egressCounts() map[string]uint64 {
	f.t.Helper()
	out := map[string]uint64{}
	f.must(topology.In(f.host(), func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "redoubt-" + f.node}
		rules, err := conn.GetRules(table, &nftables.Chain{Table: table, Name: "egress_" + f.at["limited"].address.String()})
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			comment, _, _ = strings.Cut(comment, " #")
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					out[comment] = c.Packets
				}
			}
		}
		return err
	}))
	return out
}

// counted sees that each rule counted what it let through, and refusals too.
func (f *front) counted(before map[string]uint64) {
	f.t.Helper()
	now := f.egressCounts()
	for _, rule := range []string{"to " + beyond + "/32 tcp 80", "to " + beyond + "/32 tcp 8000-8010", "to " + barred + "/32 udp 53", "anything else"} {
		v := verdict{promise: egress, what: "the counter of " + rule, control: true, held: now[rule] > before[rule]}
		if !v.held {
			v.how = fmt.Sprintf("it was %d and is %d; there are %v", before[rule], now[rule], now)
		}
		f.judge(v)
	}
}
