package network

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (p Port) number() byte {
	if p.Protocol == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

func (p Port) everywhere() bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }

// String names the host's side, as an operator would.
func (p Port) String() string {
	s := fmt.Sprintf("%d/%s", p.Host, p.Protocol)
	if !p.everywhere() {
		s = net.JoinHostPort(p.HostIP.String(), strconv.Itoa(int(p.Host))) + "/" + p.Protocol
	}
	return s
}

// conflicts tells whether one packet could be meant for both.
func (p Port) conflicts(o Port) bool {
	return p.Host == o.Host && p.number() == o.number() && (p.everywhere() || o.everywhere() || p.HostIP == o.HostIP)
}

// normal returns the ports to publish, checked and in one spelling.
func (s Spec) normal() (Spec, error) {
	if err := validID("instance id", s.Instance); err != nil {
		return s, err
	}
	var ports []Port
	for _, p := range s.Ports {
		p.Protocol = strings.ToLower(p.Protocol)
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if p.HostIP.IsValid() {
			if p.HostIP = p.HostIP.Unmap(); !p.HostIP.Is4() {
				return s, fmt.Errorf("%w host address %s of port %d: instances have IPv4 only", ErrInvalid, p.HostIP, p.Host)
			}
			if p.HostIP.IsUnspecified() {
				p.HostIP = netip.Addr{}
			}
		}
		switch {
		case p.Host == 0:
			continue
		case p.Container == 0:
			return s, fmt.Errorf("%w port: host port %s names no container port", ErrInvalid, p)
		case p.Protocol != "tcp" && p.Protocol != "udp":
			return s, fmt.Errorf("%w protocol %q of host port %d: tcp and udp can be published", ErrInvalid, p.Protocol, p.Host)
		case s.None:
			return s, fmt.Errorf("%w port: host port %s cannot be published by an instance without a network", ErrInvalid, p)
		}
		for _, o := range ports {
			if p.conflicts(o) {
				return s, fmt.Errorf("%w port: host port %s is published twice by instance %s", ErrInvalid, p, s.Instance)
			}
		}
		ports = append(ports, p)
	}
	s.Ports = ports
	if err := s.Policy.check(); err != nil {
		return s, err
	}
	if s.Hostname == "" {
		s.Hostname = s.Instance
	}
	if strings.ContainsAny(s.Hostname, " \t\r\n#") {
		return s, fmt.Errorf("%w hostname %q of instance %s", ErrInvalid, s.Hostname, s.Instance)
	}
	return s, nil
}

// heldError names the port and its holder, and is ErrPortHeld.
type heldError string

func (e heldError) Error() string        { return string(e) }
func (e heldError) Is(target error) bool { return target == ErrPortHeld }

func heldf(format string, args ...any) error { return heldError(fmt.Sprintf(format, args...)) }

// checkPorts fails if somebody else holds a port that spec wants: another
// instance of this node, another node in the same namespace or a process.
func (n *Network) checkPorts(spec Spec) error {
	for _, p := range spec.Ports {
		for _, id := range slices.Sorted(maps.Keys(n.ledger.Leases)) {
			if id == spec.Instance {
				continue
			}
			if slices.ContainsFunc(n.ledger.Leases[id].Ports, p.conflicts) {
				return heldf("host port %s is held by instance %s%s", p, id, n.ledger.Leases[id].owner(id))
			}
		}
	}
	if err := n.nft.heldElsewhere(spec.Ports); err != nil {
		return err
	}
	return n.host.do(func() error {
		for _, p := range spec.Ports {
			if err := heldByProcess(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// heldByProcess tries the port out in the namespace of the calling thread.
func heldByProcess(p Port) error {
	host := "0.0.0.0"
	if !p.everywhere() {
		host = p.HostIP.String()
	}
	address := net.JoinHostPort(host, strconv.Itoa(int(p.Host)))
	var err error
	if p.Protocol == "udp" {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp4", address); err == nil {
			return c.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen("tcp4", address); err == nil {
			return l.Close()
		}
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		socket, found := listening(p)
		if !found {
			// A connection that leaves from this port keeps it from being
			// listened on, and is not disturbed when it is published.
			return nil
		}
		return heldf("host port %s is in use on this host by another process%s", p, describe(owner(socket)))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w host port %s: %s is not an address of this host", ErrInvalid, p, host)
	default:
		return fmt.Errorf("check host port %s: %w", p, err)
	}
}

// listening finds the socket that receives on p, by its inode.
func listening(p Port) (socket string, found bool) {
	const listen, unconnected = "0A", "07"
	state := listen
	if p.Protocol == "udp" {
		state = unconnected
	}
	for _, family := range []string{"", "6"} {
		f, err := os.Open("/proc/thread-self/net/" + p.Protocol + family)
		if err != nil {
			continue
		}
		defer f.Close()
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			// sl local_address rem_address st queues timer retransmits uid timeout inode
			fields := strings.Fields(sc.Text())
			if len(fields) < 10 || fields[3] != state {
				continue
			}
			if strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", p.Host)) && p.couldMeet(fields[1]) {
				return fields[9], true
			}
		}
	}
	return "", false
}

// couldMeet tells whether a socket on the address, in the kernel's hexadecimal,
// would get packets for p.
func (p Port) couldMeet(address string) bool {
	host, _, _ := strings.Cut(address, ":")
	if p.everywhere() || strings.Trim(host, "0") == "" {
		return true
	}
	b := p.HostIP.As4()
	return strings.HasSuffix(host, fmt.Sprintf("%02X%02X%02X%02X", b[3], b[2], b[1], b[0]))
}

// owner finds a process that has the socket open.
func owner(socket string) (pid, name string) {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", ""
	}
	want := "socket:[" + socket + "]"
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && target == want {
			pid = strings.Split(fd, "/")[2]
			comm, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
			return pid, strings.TrimSpace(string(comm))
		}
	}
	return "", ""
}

func describe(pid, name string) string {
	if pid == "" {
		return ""
	}
	return fmt.Sprintf(" (%s, pid %s)", name, pid)
}

// owner names what people know the instance by, where that is another name.
func (l lease) owner(id string) string {
	switch {
	case l.Policy.Workload != "" && l.Hostname != id:
		return fmt.Sprintf(" (%s of workload %s)", l.Hostname, l.Policy.Workload)
	case l.Hostname != "" && l.Hostname != id:
		return fmt.Sprintf(" (%s)", l.Hostname)
	}
	return ""
}
