package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// asCommand makes the test's own binary the command, so that what is tested is a
// process of its own, with memory of its own.
const asCommand = "REDOUBT_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		env := cli.Process()
		os.Exit(cli.Run(context.Background(), env))
	}
	os.Exit(m.Run())
}

// besieged is a server process and what is needed to attack it.
type besieged struct {
	t     *testing.T
	api   string
	admin identity.File
	dir   string
	pid   int
	idle  int // MiB
}

func besiege(t *testing.T) *besieged {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &besieged{t: t, api: freeAddress(t), dir: t.TempDir()}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(self, args...)
		cmd.Env = append(os.Environ(), asCommand+"=1", "HOME="+s.dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	admin := filepath.Join(s.dir, "admin.context")
	if out, err := command("server", "init", "--data-dir", s.dir+"/s1", "--id", "s1", "--trust-domain", "test.fleet",
		"--api-address", s.api, "--raft-address", freeAddress(t), "--enroll-address", freeAddress(t), "--admin-context", admin).CombinedOutput(); err != nil {
		t.Fatalf("server init: %v\n%s", err, out)
	}
	if s.admin, err = identity.LoadFile(admin); err != nil {
		t.Fatal(err)
	}
	server := command("server", "--data-dir", s.dir+"/s1")
	log, err := os.Create(s.dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	s.pid = server.Process.Pid
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT)
		if err := server.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
		if t.Failed() {
			t.Logf("its log:\n%.8000s", s.log())
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn := s.conn(s.admin.Source())
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := redoubtv1.NewFleetServiceClient(conn).ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{})
		cancel()
		conn.Close()
		if err == nil {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("the server does not serve: %v\n%s", err, s.log())
		}
	}
}

// log is what the server has written.
func (s *besieged) log() string {
	data, _ := os.ReadFile(s.dir + "/log")
	return string(data)
}

func (s *besieged) conn(src identity.Source) *identity.Conn {
	s.t.Helper()
	conn, err := identity.NewConn("passthrough:///"+s.api, src, identity.AuthorizeServers(s.admin.SVID.ID.TrustDomain()))
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// as is an identity that the fleet has signed.
func (s *besieged) as(id string) identity.Source {
	s.t.Helper()
	authority, err := ca.Load(filepath.Join(s.dir, "s1", "ca"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := authority.Activate(s.admin.Bundle); err != nil {
		s.t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		s.t.Fatal(err)
	}
	of, err := identity.Parse("spiffe://test.fleet/" + id)
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := authority.SignSVID(csr, of, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	svid, err := identity.NewSVID(key, chain)
	if err != nil {
		s.t.Fatal(err)
	}
	return identity.NewMemorySource(svid, s.admin.Bundle)
}

// memory reads a figure of the server's memory, MiB.
func (s *besieged) memory(figure string) int {
	s.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.t.Fatalf("the server is gone: %v\n%.4000s", err, s.log())
	}
	_, rest, _ := strings.Cut(string(data), figure+":")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return kib >> 10
}

// during attacks the server and holds it to its promise: another user is
// answered, within a second as a rule, and at no moment has the server more than
// most MiB beyond what it had when it was idle at first. Attacker, bystander and
// server share the machine's cores, so that a second is not held at each call.
func (s *besieged) during(most int, attack func()) {
	s.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.pid), []byte("5"), 0); err != nil { // forgets the peak
		s.t.Fatal(err)
	}
	if s.idle == 0 {
		s.idle = s.memory("VmRSS")
	}
	done, asked := make(chan struct{}), make(chan []time.Duration)
	conn := s.conn(s.as("user/bystander"))
	defer conn.Close()
	go func() {
		var took []time.Duration
		defer func() { asked <- took }()
		for {
			begun := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_, err := redoubtv1.NewFleetServiceClient(conn).GetServerInfo(ctx, &redoubtv1.GetServerInfoRequest{})
			cancel()
			if err != nil {
				s.t.Errorf("another user is not served: %v", err)
				return
			}
			took = append(took, time.Since(begun))
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	var took []time.Duration
	func() {
		defer func() { close(done); took = <-asked }()
		attack()
	}()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	half, worst := took[len(took)/2], took[len(took)-1]
	grown := s.memory("VmHWM") - s.idle
	s.t.Logf("memory: %d MiB idle, %d more at the peak; another user was answered %d times, half of them within %s, all within %s",
		s.idle, grown, len(took), half.Round(time.Millisecond), worst.Round(time.Millisecond))
	if grown > most {
		s.t.Errorf("memory grew by %d MiB, at most %d", grown, most)
	}
	if half > time.Second || worst > 8*time.Second {
		s.t.Errorf("another user waited for %s as a rule and %s at the worst", half, worst)
	}
}

// enemy is a connection whose every frame the test decides.
type enemy struct {
	t    *testing.T
	conn net.Conn
	next uint32

	mu     sync.Mutex
	fr     *http2.Framer
	window int64            // of the connection
	room   map[uint32]int64 // that streams were given beyond what they begin with
	moved  chan struct{}
	rst    int
	ended  map[uint32]string // grpc-status by stream that the server ended
	gone   chan struct{}
	err    error
}

// enemy opens a connection as src. Streams' windows for what the server answers
// have room for so many bytes, and are never widened.
func (s *besieged) enemy(src identity.Source, room uint32, from net.IP) (*enemy, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if from != nil {
		d.LocalAddr = &net.TCPAddr{IP: from}
	}
	raw, err := d.Dial("tcp", s.api)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, _, err := identity.ClientCredentials(src, identity.AuthorizeServers(s.admin.SVID.ID.TrustDomain())).ClientHandshake(ctx, "", raw)
	if err != nil {
		return nil, err
	}
	e := &enemy{t: s.t, conn: conn, next: 1, fr: http2.NewFramer(conn, conn), window: 65535, room: map[uint32]int64{}, moved: make(chan struct{}, 1), ended: map[uint32]string{}, gone: make(chan struct{})}
	e.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return nil, err
	}
	if err := e.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: room}); err != nil {
		return nil, err
	}
	go e.listen()
	return e, nil
}

func (e *enemy) listen() {
	defer close(e.gone)
	for {
		f, err := e.fr.ReadFrame()
		if err != nil {
			e.mu.Lock()
			e.err = err
			e.mu.Unlock()
			return
		}
		e.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = e.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = e.fr.WritePing(true, f.Data)
			}
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				e.window += int64(f.Increment)
			} else {
				e.room[f.StreamID] += int64(f.Increment)
			}
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				for _, h := range f.Fields {
					if h.Name == "grpc-status" {
						e.ended[f.StreamID] = h.Value
					}
				}
			}
		case *http2.RSTStreamFrame:
			e.rst++
		}
		e.mu.Unlock()
		select {
		case e.moved <- struct{}{}:
		default:
		}
	}
}

func (e *enemy) close() { e.conn.Close(); <-e.gone }

// headers of a call, encoded anew each time so that nothing is remembered.
func headers(method string, more ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	fields := append([]string{":method", "POST", ":scheme", "https", ":path", method, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	return b.Bytes()
}

// open begins a call.
func (e *enemy) open(method string) (stream uint32, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	stream = e.next
	e.next += 2
	return stream, e.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers(method), EndHeaders: true})
}

// send waits for room in the connection's window, not in the stream's.
func (e *enemy) send(stream uint32, data []byte, last bool) error {
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), 16<<10)
		for {
			e.mu.Lock()
			if e.window >= int64(n) {
				break
			}
			e.mu.Unlock()
			select {
			case <-e.moved:
			case <-e.gone:
				return errors.New("the connection is gone")
			case <-time.After(10 * time.Second):
				return errors.New("the server takes nothing")
			}
		}
		e.window -= int64(n)
		err := e.fr.WriteData(stream, last && n == len(data), data[:n])
		e.mu.Unlock()
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// say sends a message of size of which body comes: its length first, the rest
// when the server has made room for it.
func (e *enemy) say(stream uint32, size int, body []byte, last bool) error {
	if err := e.send(stream, message(size, nil), false); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); ; {
		e.mu.Lock()
		ready := len(body) < 128<<10-5 || e.room[stream] >= int64(len(body)-128<<10)
		_, ended := e.ended[stream]
		e.mu.Unlock()
		if ended {
			return nil
		}
		if ready {
			return e.send(stream, body, last)
		}
		select {
		case <-e.gone:
			return errors.New("the connection is gone")
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(end) {
			return errors.New("the server makes no room")
		}
	}
}

// message is one of gRPC's: its prefix says size, and body may be less.
func message(size int, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), body...)
}

// refusals are the calls that the server ended with RESOURCE_EXHAUSTED.
func (e *enemy) refusals() (exhausted, other int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, status := range e.ended {
		if status == "8" {
			exhausted++
		} else {
			other++
		}
	}
	return exhausted, other
}
