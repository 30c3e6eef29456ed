package net

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/attack"
	"redoubt.dev/redoubt/integration/net/topology"
)

// ears hear marked frames on links, and remember which where.
type ears struct {
	mu    sync.Mutex
	heard map[string]map[int]bool // by place
	done  sync.WaitGroup
	stop  chan struct{}
}

// listen opens a packet socket on a link, in the namespace of its thread.
func listen(link string) (int, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return 0, err
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return 0, err
	}
	return fd, errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
	)
}

func (e *ears) at(place string, fd int) {
	e.mu.Lock()
	e.heard[place] = map[int]bool{}
	e.mu.Unlock()
	e.done.Go(func() {
		defer unix.Close(fd)
		buf := make([]byte, 4096)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			select {
			case <-e.stop:
				return
			default:
			}
			if err != nil {
				continue
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if m := attack.Marked(buf[:n]); m >= 0 {
				e.mu.Lock()
				e.heard[place][m] = true
				e.mu.Unlock()
			}
		}
	})
}

func (e *ears) heardAt(place string, m int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard[place][m]
}

const (
	atHost, atVictim, atFriend, atRouter = "the host's end", "the neighbour", "another neighbour", "beyond the host"
)

// listenAround opens ears wherever a forged frame would do harm.
func (f *front) listenAround() *ears {
	f.t.Helper()
	e := &ears{heard: map[string]map[int]bool{}, stop: make(chan struct{})}
	open := func(place, link string, in func(func() error) error) {
		f.t.Helper()
		var fd int
		f.must(in(func() (err error) { fd, err = listen(link); return err }))
		e.at(place, fd)
	}
	named := func(ns string) func(func() error) error {
		return func(do func() error) error { return topology.In(ns, do) }
	}
	open(atHost, f.link, named(f.host()))
	open(atRouter, f.node, named(f.router()))
	for place, role := range map[string]string{atVictim: "victim", atFriend: "friend"} {
		pin := f.File(f.node + "/network/netns/" + f.at[role].uid)
		open(place, "eth0", func(do func() error) error { return topology.At(pin, do) })
	}
	return e
}

// forge sends what no instance should be able to send.
func (f *front) forge() {
	f.t.Helper()
	e := f.listenAround()
	self, victim := f.at["attacker"], f.at["victim"]
	place := attack.Place{
		Self: self.address, Victim: victim.address, Gateway: f.gateway, Outside: netip.MustParseAddr(beyond),
		SelfMAC: self.mac(), VictimMAC: victim.mac(), GatewayMAC: f.gatewayMAC,
	}
	frames, err := attack.Forgeries(place)
	f.must(err)
	sent := inside[[]attack.Result](f, "attacker", "forge", place)

	// The honest ways have their controls: a datagram of its own gets beyond.
	v := victim.address.String()
	lies := []attack.Lie{
		{Name: "its own address, honestly", To: beyond + ":80"},
		{Name: "takes the neighbour's address", Address: v + "/32", From: v, To: beyond + ":80"},
		{Name: "takes the gateway's address", Address: f.gateway.String() + "/32", From: f.gateway.String(), To: v + ":8000"},
		{Name: "takes an address of nobody", Address: "198.51.100.77/32", From: "198.51.100.77", To: beyond + ":80"},
		{Name: "takes a loopback address outward", Address: "127.0.0.9/32", From: "127.0.0.9", To: beyond + ":80"},
		{Name: "takes the neighbour's hardware address", MAC: victim.mac(), To: beyond + ":80"},
		{Name: "sends in a VLAN", VLAN: 7, From: self.address.String(), To: "198.51.100.30:80"},
		{Name: "takes an IPv6 address", IPv6: true, Address: "fd00:ec2::9/64", To: "[" + metadata6 + "]:80"},
		{Name: "takes an IPv6 address without asking", Address: "fd00:ec2::9/64", To: "[" + metadata6 + "]:80"},
	}
	const firstLie = 900
	for i := range lies {
		lies[i].Mark = firstLie + i
	}
	told := inside[[]attack.Result](f, "attacker", "lie", lies)

	// Frames take no time here; the honest ones show when they are through.
	f.eventually("the attacker's honest datagram is heard beyond the host", 15*time.Second, func() string {
		if e.heardAt(atRouter, firstLie) && (!sent[0].Reached || e.heardAt(atRouter, 0)) {
			return ""
		}
		return fmt.Sprintf("told %v, sent %v", told[0], sent[0])
	})
	// What was forged was sent before the honest one; that nothing of it comes
	// has no event, so it is given as long again as a packet could take.
	time.Sleep(300 * time.Millisecond)
	close(e.stop)
	e.done.Wait()

	how := map[string]int{}
	for i, fr := range frames {
		if fr.Control && !sent[i].Reached {
			continue // no frame at all can be sent; what is sent otherwise has its own control
		}
		v := verdict{promise: forging, what: fr.Name, control: fr.Control, held: true, inside: sent[i].Inside}
		if fr.Control {
			v.held = e.heardAt(atRouter, i) && e.heardAt(atHost, i)
		} else {
			v.held, v.how = e.silent(i, fr.May)
		}
		f.judge(v)
		how[sent[i].Answer+sent[i].Error]++
	}
	for i, l := range lies {
		v := verdict{promise: forging, what: l.Name, control: i == 0, held: true, inside: told[i].Inside}
		if i > 0 {
			v.held, v.how = e.silent(l.Mark, false)
		} else if told[i].Inside {
			v.held, v.how = false, told[i].Error
		}
		f.judge(v)
		f.t.Logf("%s: %s: %s", f.runtime, l.Name, told[i].Error)
	}
	f.t.Logf("%s: frames: %v", f.runtime, how)
	// After all that, everybody is where they were.
	f.control(forging, "the neighbour is where it was", attack.Probe{Kind: attack.TCP, To: v + ":8000"}, f.host())
	f.attempt("attacker", []attempt{{promise: forging, through: true, answer: "friend",
		Probe: attack.Probe{Name: "the attacker's own way", Kind: attack.TCP, To: f.at["friend"].address.String() + ":8000", Patience: 15 * time.Second}}})
}

// silent tells that a frame got nowhere, but perhaps to the host's end.
func (e *ears) silent(m int, may bool) (bool, string) {
	for _, place := range []string{atVictim, atFriend, atRouter, atHost} {
		if e.heardAt(place, m) && !(place == atHost && may) {
			return false, "it is heard at " + place
		}
	}
	return true, ""
}

// flood opens more connections than anybody needs, while others work.
func (f *front) flood() {
	f.t.Helper()
	most := 0
	data, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	f.must(err)
	_, err = fmt.Sscan(string(data), &most)
	f.must(err)
	sent, err := execute[int](f, "attacker", "flood", beyond, fmt.Sprint(most/8))
	f.must(err)
	tracked := 0
	f.must(topology.In(f.host(), func() error {
		data, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
		if err == nil {
			_, err = fmt.Sscanf(string(bytes.TrimLeft(data[bytes.IndexByte(data, '\n')+1:], " ")), "%x", &tracked)
		}
		return err
	}))
	f.judge(verdict{promise: flooding, what: "connections that are kept", held: tracked < most/12,
		how: fmt.Sprintf("%d flows opened, %d of at most %d tracked", sent, tracked, most)})
	f.control(flooding, "the neighbour", attack.Probe{Kind: attack.TCP, To: f.ip() + ":18000"}, f.router())
	f.attempt("limited", []attempt{{promise: flooding, through: true, answer: "beyond",
		Probe: attack.Probe{Name: "a neighbour's own connections", Kind: attack.TCP, To: beyond + ":80", Patience: 15 * time.Second}}})
}

// flush takes all rules of the host away while attackers look.
func (f *front) flush() {
	f.t.Helper()
	victim, friend := f.at["victim"].address.String(), f.at["friend"].address.String()
	const last = 4 * time.Second
	watches := []struct {
		role string
		of   []attack.Watch
	}{
		{"attacker", []attack.Watch{
			{Name: "a neighbour", To: victim + ":8000", Last: last},
			{Name: "the host's port", To: f.ip() + ":2222", Last: last},
			{Name: "metadata", To: metadata[0] + ":80", Last: last},
			{Name: "who lets it in", To: friend + ":8000", Last: last},
		}},
		{"limited", []attack.Watch{{Name: "beyond its rules", To: barred + ":80", Last: last}}},
	}
	seen := make([][]attack.Watched, len(watches))
	var all errgroup.Group
	for i, w := range watches {
		file := fmt.Sprintf("%s-%s-watch.json", w.role, f.site)
		data, err := json.Marshal(w.of)
		f.must(err)
		f.must(os.WriteFile(f.File("tools/"+file), data, 0o600))
		all.Go(func() (err error) {
			seen[i], err = execute[[]attack.Watched](f, w.role, "watch", "/attack/"+file)
			return err
		})
	}
	// They tell what they saw at their end only; who has not begun by now is found
	// out below.
	time.Sleep(2 * time.Second)
	at := time.Now()
	f.must(topology.In(f.host(), func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.FlushRuleset()
		return conn.Flush()
	}))
	f.must(all.Wait())
	for _, got := range slices.Concat(seen...) {
		if got.Name == "who lets it in" {
			f.judge(verdict{promise: flushing, what: got.Name, control: true, held: len(got.Answered) > got.Asked/2 && got.Error == ""})
			continue
		}
		v := verdict{promise: flushing, what: got.Name, held: true}
		var window time.Duration
		for _, us := range got.Answered {
			after := time.UnixMicro(us).Sub(at)
			window = max(window, after)
			// On a busy machine a question is on its way for a while.
			if after < -250*time.Millisecond {
				v.held, v.how = false, fmt.Sprintf("it was reached %v before the flush", -after)
			}
		}
		if began := time.UnixMicro(got.Began); !began.Before(at) {
			v.held, v.how = false, fmt.Sprintf("it began to look %v after the flush", began.Sub(at))
		}
		if window > 2*time.Second || got.Asked < 100 || got.Error != "" {
			v.held, v.how = false, fmt.Sprintf("asked %d times, reached for %v after the flush; %s", got.Asked, window, got.Error)
		}
		if v.held {
			v.how = fmt.Sprintf("%s %d ms", got.Name, window.Milliseconds())
		}
		f.judge(v)
	}
}
