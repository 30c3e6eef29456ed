package attack

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Try makes all probes side by side.
func Try(probes []Probe) []Result {
	out := make([]Result, len(probes))
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() { out[i] = p.Try() })
	}
	all.Wait()
	return out
}

// Try repeats the probe until it succeeds or its patience is over.
func (p Probe) Try() Result {
	end := time.Now().Add(p.Patience)
	for {
		answer, err := p.once(time.Now().Add(min(time.Until(end), time.Second)))
		r := Result{Name: p.Name, Reached: err == nil, Answer: answer}
		if err == nil {
			return r
		}
		r.Error, r.Inside = err.Error(), refusedInside(err)
		if time.Until(end) < 100*time.Millisecond {
			return r
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// refusedInside tells errors of the own system from those of the network.
func refusedInside(err error) bool {
	return slices.ContainsFunc([]error{
		unix.EPERM, unix.EACCES, unix.EAFNOSUPPORT, unix.EADDRNOTAVAIL, unix.EPROTONOSUPPORT, unix.ENOENT,
		unix.EOPNOTSUPP, unix.ESOCKTNOSUPPORT, unix.ENETUNREACH, unix.EINVAL, unix.ENODEV, unix.ENOSYS, unix.EROFS,
	}, func(e error) bool { return errors.Is(err, e) })
}

func (p Probe) once(deadline time.Time) (string, error) {
	switch p.Kind {
	case TCP:
		return p.stream("tcp", deadline)
	case Socket:
		conn, err := p.dial("unix", deadline)
		if err != nil {
			return "", err
		}
		return "connected", conn.Close()
	case UDP:
		return p.datagram(deadline, 0)
	case Fragment:
		return p.datagram(deadline, 4000)
	case Ping:
		return p.ping(deadline)
	case Name:
		return p.ask(deadline)
	case Transfer:
		return p.transfer(deadline)
	}
	return "", fmt.Errorf("%q is no kind of probe", p.Kind)
}

func (p Probe) dial(network string, deadline time.Time) (net.Conn, error) {
	d := net.Dialer{Deadline: deadline}
	if p.From != "" {
		ip := net.ParseIP(p.From)
		d.LocalAddr = &net.TCPAddr{IP: ip}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		}
	}
	conn, err := d.Dial(network, p.To)
	if err == nil {
		err = conn.SetDeadline(deadline)
	}
	return conn, err
}

func (p Probe) stream(network string, deadline time.Time) (string, error) {
	conn, err := p.dial(network, deadline)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s\n", p.Query); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

func (p Probe) datagram(deadline time.Time, size int) (string, error) {
	conn, err := p.dial("udp", deadline)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ask := make([]byte, max(size, 1))
	buf := make([]byte, 64<<10)
	// One datagram may be lost where many are sent at once.
	for {
		if _, err := conn.Write(ask); err != nil {
			return "", err
		}
		wait := time.Now().Add(200 * time.Millisecond)
		if wait.After(deadline) {
			wait = deadline
		}
		_ = conn.SetReadDeadline(wait)
		n, err := conn.Read(buf)
		if err == nil {
			line, _, _ := strings.Cut(string(buf[:n]), "\n")
			return line, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return "", err
		}
	}
}

func (p Probe) ping(deadline time.Time) (string, error) {
	to := net.ParseIP(p.To)
	raw, plain, here, proto := "ip4:icmp", "udp4", "0.0.0.0", 1
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if to.To4() == nil {
		raw, plain, here, proto, kind = "ip6:ipv6-icmp", "udp6", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	var addr net.Addr = &net.IPAddr{IP: to}
	conn, err := icmp.ListenPacket(raw, here)
	if err != nil {
		first := err
		addr = &net.UDPAddr{IP: to}
		if conn, err = icmp.ListenPacket(plain, here); err != nil {
			return "", errors.Join(first, err)
		}
	}
	defer conn.Close()
	id := int(time.Now().UnixNano() & 0xffff)
	msg, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte(p.Name)}}).Marshal(nil)
	if err != nil {
		return "", err
	}
	if _, err := conn.WriteTo(msg, addr); err != nil {
		return "", err
	}
	_ = conn.SetReadDeadline(deadline)
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return "", err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && (m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply) && string(e.Data) == p.Name {
			return from.String(), nil
		}
	}
}

// errNoName is an answer without an address.
var errNoName = errors.New("the name does not exist")

func (p Probe) ask(deadline time.Time) (string, error) {
	conn, err := p.dial("udp", deadline)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(p.Query), dns.TypeA)
	a, _, err := (&dns.Client{Timeout: time.Until(deadline)}).ExchangeWithConn(q, &dns.Conn{Conn: conn})
	if err != nil {
		return "", err
	}
	var found []string
	for _, rr := range a.Answer {
		if r, ok := rr.(*dns.A); ok {
			found = append(found, r.A.String())
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("%w: %s", errNoName, dns.RcodeToString[a.Rcode])
	}
	return strings.Join(found, " "), nil
}

func (p Probe) transfer(deadline time.Time) (string, error) {
	t := &dns.Transfer{DialTimeout: time.Until(deadline), ReadTimeout: time.Until(deadline)}
	in, err := t.In(new(dns.Msg).SetAxfr(dns.Fqdn(p.Query)), p.To)
	if err != nil {
		return "", err
	}
	var records []string
	for e := range in {
		if e.Error != nil {
			err = e.Error
		}
		for _, rr := range e.RR {
			records = append(records, rr.String())
		}
	}
	if len(records) == 0 {
		return "", errors.Join(errors.New("no record is given"), err)
	}
	return strings.Join(records, "; "), nil
}
