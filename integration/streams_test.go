package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/deploy/node"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// fakeFleet is a server and a node with the fake driver, in this process, over
// real connections, and runs a service "web" on it. It returns a client maker and
// the administrator's context.
func fakeFleet(t *testing.T) (newClient func() redoubtv1.FleetServiceClient, admin string) {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	addresses := control.Addresses{API: freeAddress(t), Raft: freeAddress(t), Enroll: freeAddress(t)}
	admin = filepath.Join(dir, "admin.context")
	if err := control.Init(control.InitConfig{Dir: dir + "/server", ID: "s1", TrustDomain: "test.fleet", Addresses: addresses, AdminContext: admin, Log: log}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	t.Cleanup(func() { cancel(); parts.Wait() })
	ready := make(chan struct{})
	timing := leader.DefaultTiming()
	timing.Heartbeat = time.Second
	parts.Go(func() {
		if err := control.Run(ctx, control.Config{Dir: dir + "/server", Version: "test", Timing: timing, Log: log, Ready: func() { close(ready) }}); err != nil && ctx.Err() == nil {
			t.Errorf("the server: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Fatal("the server is not ready after a minute")
	}
	file, err := identity.LoadFile(admin)
	if err != nil {
		t.Fatal(err)
	}
	client := func() redoubtv1.FleetServiceClient {
		conn, err := identity.NewConn("passthrough:///"+addresses.API, file.Source(), identity.AuthorizeServers(file.SVID.ID.TrustDomain()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return redoubtv1.NewFleetServiceClient(conn)
	}
	token, err := client().CreateJoinToken(ctx, &redoubtv1.CreateJoinTokenRequest{Node: "n1", Site: "oslo"})
	if err != nil {
		t.Fatal(err)
	}
	parts.Go(func() {
		if err := node.Run(ctx, node.Config{DataDir: dir + "/agent", Driver: node.DriverFake, Token: token.GetToken(), Version: "test", Log: log}); err != nil && ctx.Err() == nil {
			t.Errorf("the agent: %v", err)
		}
	})
	runWeb(t, client())
	return client, admin
}

func runWeb(t *testing.T, client redoubtv1.FleetServiceClient) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w := &redoubtv1.Workload{Name: "web", Kind: "Service", Containers: []*redoubtv1.Container{{
		Name: "web", Image: "toolbox", Command: []string{"sh", "-c", "echo hello; while true; do sleep 1; done"}}}}
	if _, err := client.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: "one"}); err != nil {
		t.Fatal(err)
	}
	for {
		r, err := client.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if r.GetWorkload().GetStatus().GetRunning() == 1 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// resident is the memory of this process in KiB.
func resident(t *testing.T) int64 {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// A thousand streams of logs and ports are open at once on one node, some of
// them with readers who stand still; each gets what is its own, and what they
// take in agent, server and client together is a few dozen KiB each.
func TestAThousandStreamsOnOneNode(t *testing.T) {
	newClient, admin := fakeFleet(t)
	client := newClient()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	before := resident(t)
	began := time.Now()
	const logs, forwards, still = 500, 480, 20
	forward := func(i int) (redoubtv1.FleetService_PortForwardClient, error) {
		s, err := client.PortForward(ctx)
		if err == nil {
			err = s.Send(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Start{Start: &redoubtv1.PortForwardStart{Name: "web", Port: uint32(i + 1)}}})
		}
		if err != nil {
			return nil, err
		}
		m, err := s.Recv()
		if err == nil && m.GetConnected() != "web-1" {
			err = fmt.Errorf("it begins with %v", m)
		}
		return s, err
	}
	data := func(b []byte) *redoubtv1.PortForwardRequest {
		return &redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Data{Data: b}}
	}
	// Twenty send and never read what comes back.
	for i := range still {
		s, err := forward(i)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for s.Send(data(make([]byte, 16<<10))) == nil {
			}
		}()
	}
	client = newClient()
	var open []redoubtv1.FleetService_PortForwardClient
	for i := range forwards {
		if i%200 == 199 {
			client = newClient() // one connection carries 256
		}
		s, err := forward(i)
		if err != nil {
			t.Fatalf("forward %d: %v", i, err)
		}
		open = append(open, s)
	}
	for i := range logs {
		if i%200 == 0 {
			client = newClient()
		}
		s, err := client.Logs(ctx, &redoubtv1.LogsRequest{Name: "web", Follow: true, Tail: -1})
		if err != nil {
			t.Fatalf("logs %d: %v", i, err)
		}
		for text := ""; text != "hello\n"; {
			m, err := s.Recv()
			if err != nil || m.GetError() != "" {
				t.Fatalf("logs %d: %v, %v", i, m, err)
			}
			text += string(m.GetData())
		}
	}
	// All are open: each forward still carries its own.
	for i, s := range open {
		if err := s.Send(data(fmt.Appendf(nil, "%d", i))); err != nil {
			t.Fatalf("forward %d: %v", i, err)
		}
	}
	for i, s := range open {
		if m, err := s.Recv(); err != nil || string(m.GetData()) != fmt.Sprint(i) {
			t.Fatalf("forward %d: %v, %v", i, m, err)
		}
	}
	took := resident(t) - before
	t.Logf("%d streams opened in %s; %d KiB for all, %d KiB each, in agent, server and client together",
		logs+forwards+still, time.Since(began).Round(10*time.Millisecond), took, took/(logs+forwards+still))
	if took > 300<<10 {
		t.Errorf("a thousand streams take %d MiB", took>>10)
	}
	t.Run("by the command, beside all of them", func(t *testing.T) { forwardByCommand(t, admin) })
}

// forwardByCommand carries two connections through `redoubt port-forward`, each
// direction until its own end.
func forwardByCommand(t *testing.T, admin string) {
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	var complaints strings.Builder
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, cli.Env{Args: []string{"--context", admin, "port-forward", "web", ":80"}, Stdin: strings.NewReader(""),
			Stdout: w, Stderr: &complaints, Getenv: func(string) string { return "" }})
		w.Close()
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	go func() { _, _ = io.Copy(io.Discard, r) }()
	address, rest, _ := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " ")
	if err != nil || rest != "to port 80 of web-1\n" {
		t.Errorf("it says %q, %v", line, err)
	}
	for range 2 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		want := strings.Repeat("0123456789", 50_000)
		go func() {
			_, _ = io.WriteString(c, want)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("%d bytes came back of %d, %v", len(got), len(want), err)
		}
	}
	cancel()
	if c := <-code; c != 130 || complaints.Len() > 0 {
		t.Errorf("interrupted it ends with %d and %q", c, complaints.String())
	}
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("it listens on when it has ended")
	}
}
