package control

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// gigabyte is a codec whose messages have 1 GB and take a megabyte of memory.
type gigabyte struct{ encoding.CodecV2 }

func (gigabyte) Name() string { return "proto" }

func (gigabyte) Marshal(any) (mem.BufferSlice, error) {
	piece := mem.SliceBuffer(make([]byte, 1<<20))
	var s mem.BufferSlice
	for range 1000 {
		s = append(s, piece)
	}
	return s, nil
}

// TestNoCallerExhaustsAServer: what a hostile user and a hostile node send over
// real connections is refused or waits, and another user is served meanwhile.
func TestNoCallerExhaustsAServer(t *testing.T) {
	c := newCluster(t, "s1")
	node := c.node("s1", "oslo-1", "oslo")
	mallory, err := identity.UserID(td, "mallory")
	if err != nil {
		t.Fatal(err)
	}
	hostile := c.signed("s1", mallory, time.Hour)
	served := func(during string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := c.fleet().ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{}); err != nil {
			t.Errorf("the administrator is not served during %s: %v", during, err)
		}
	}
	c.eventually("the server leads", func() error {
		_, err := c.fleet().ListWorkloads(c.ctx(), &redoubtv1.ListWorkloadsRequest{})
		return err
	})

	t.Run("a message of 1 GB", func(t *testing.T) {
		begun := time.Now()
		err := c.conn("s1", hostile).Invoke(c.ctx(), redoubtv1.FleetService_ApplyWorkload_FullMethodName, &redoubtv1.ApplyWorkloadRequest{}, &redoubtv1.ApplyWorkloadResponse{},
			grpc.ForceCodecV2(gigabyte{}), grpc.MaxCallSendMsgSize(2<<30))
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "larger than max") {
			t.Errorf("it is answered with %v", err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("it took %s: the server read it", took)
		}
		served("a message of 1 GB")
	})

	t.Run("streams", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var open, refused, others atomic.Int64
		var wg sync.WaitGroup
		for range 10 { // connections, of 256 streams each
			conn := c.conn("s1", hostile)
			for range 250 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
					context.AfterFunc(ctx, cancel)
					// Opened and never used: the server waits for the first message.
					s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, redoubtv1.FleetService_Exec_FullMethodName)
					if err == nil {
						open.Add(1)
						err = s.RecvMsg(&redoubtv1.ExecResponse{})
						open.Add(-1)
					}
					switch {
					case ctx.Err() != nil:
					case status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "mallory"):
						refused.Add(1)
					default:
						others.Add(1)
					}
				})
			}
		}
		c.eventually("some are refused", func() error {
			served("a flood of streams")
			if refused.Load() < 400 {
				return fmt.Errorf("%d open, %d refused", open.Load(), refused.Load())
			}
			return nil
		})
		// Here one counts until its refusal has come.
		c.eventually("no more stay open", func() error {
			if n := open.Load(); n > 2048 {
				return fmt.Errorf("%d streams of one user are open", n)
			}
			return nil
		})
		if n := c.metric("s1", "redoubt_server_refused_total"); int64(n) < refused.Load() {
			t.Errorf("%v refusals are counted, %d were met", n, refused.Load())
		}
		cancel()
		wg.Wait()
		if n := others.Load(); n > 0 {
			t.Errorf("%d ended otherwise", n)
		}
	})

	t.Run("connections that say nothing", func(t *testing.T) {
		var silent []net.Conn
		defer func() {
			for _, conn := range silent {
				conn.Close()
			}
		}()
		from := func(source byte, n int, address string) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, source)}}
			for range n {
				conn, err := d.DialContext(c.ctx(), "tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				silent = append(silent, conn)
			}
		}
		for source := byte(2); source < 12; source++ {
			from(source, 128, c.servers["s1"].addresses.Enroll)
		}
		served("a flood of enrolments")
		// As many as there are places for strangers: the server's own address
		// has others.
		for source := byte(20); source < 52; source++ {
			from(source, 64, c.servers["s1"].addresses.API)
		}
		// Its list of servers is looked at each second; the silent are let go
		// after ten.
		host, _, _ := net.SplitHostPort(c.servers["s1"].addresses.API)
		served := func() error {
			ctx, cancel := context.WithTimeout(c.ctx(), 2*time.Second)
			defer cancel()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
			conn, err := identity.NewConn("passthrough:///"+c.servers["s1"].addresses.API, c.source(""), identity.AuthorizeServers(td),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = redoubtv1.NewFleetServiceClient(conn).ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{})
			return err
		}
		err := served()
		for end := time.Now().Add(6 * time.Second); err != nil && time.Now().Before(end); err = served() {
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("one at a server's address is not served during a flood of handshakes: %v", err)
		}
		if n := c.metric("s1", "redoubt_server_refused_total", "handshakes"); n < 10*96 {
			t.Errorf("%v handshakes were refused", n)
		}
	})

	t.Run("statuses", func(t *testing.T) {
		s, err := node.session("s1", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.cancel()
		begun, before := time.Now(), c.applied()
		sent := 0
		for ; time.Since(begun) < 2*time.Second; sent++ {
			done := make(chan error, 1)
			go func() {
				done <- s.status(uint64(sent+1), &redoubtv1.InstanceStatus{Uid: fmt.Sprint("none-", sent), Message: strings.Repeat("x", 8<<10)})
			}()
			select {
			case err = <-done:
			case <-time.After(time.Until(begun.Add(3 * time.Second))):
				err = context.DeadlineExceeded // it waits: so it should
			}
			if err != nil {
				break
			}
		}
		served("a flood of statuses")
		// The burst, what two seconds allow, and what lies in buffers between.
		if most := 2500; sent > most {
			t.Errorf("%d statuses were taken in %s", sent, time.Since(begun))
		}
		if grown := c.applied() - before; grown > 200 {
			t.Errorf("statuses of no instance made %d log entries", grown)
		}
	})
}

// metric sums a figure of a server over the labels that are not given.
func (c *cluster) metric(server, name string, labels ...string) (sum float64) {
	c.t.Helper()
	families, err := c.servers[server].metrics.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			text := fmt.Sprint(m.GetLabel())
			if !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(text, `"`+l+`"`) }) {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// TestMetricsTellWhatHappened: figures of a server that leads, has an agent, a
// workload that nobody takes, and calls.
func TestMetricsTellWhatHappened(t *testing.T) {
	c, _, _ := placed(t, "s1")
	c.eventually("the figures", func() error {
		for _, tt := range []struct {
			name  string
			least float64
			label []string
		}{
			{"redoubt_server_raft_leader", 1, nil},
			{"redoubt_server_raft_voters", 1, nil},
			{"redoubt_server_nodes", 1, nil},
			{"redoubt_server_instances", 1, []string{"assigned"}},
			{"redoubt_server_workloads", 1, []string{"wanted"}},
			{"redoubt_server_plan_seconds", 1, nil},
			{"redoubt_server_propose_seconds", 3, []string{"done"}},
			{"redoubt_server_requests_total", 1, []string{"ApplyWorkload", "OK"}},
			{"redoubt_server_svid_expiry_timestamp_seconds", float64(time.Now().Unix()), nil},
		} {
			if got := c.metric("s1", tt.name, tt.label...); got < tt.least {
				return fmt.Errorf("%s %v is %v, at least %v", tt.name, tt.label, got, tt.least)
			}
		}
		return nil
	})
	if got := c.metric("s1", "redoubt_server_store_failing"); got != 0 {
		t.Errorf("its store is failing: %v", got)
	}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("many", 500)}); err != nil {
		t.Fatal(err)
	}
	c.eventually("what is pending", func() error {
		if got := c.metric("s1", "redoubt_server_pending_instances"); got < 1 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// applied is the log index of the first server.
func (c *cluster) applied() uint64 {
	c.t.Helper()
	r, err := c.fleet().GetServerInfo(c.ctx(), &redoubtv1.GetServerInfoRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	return r.GetAppliedIndex()
}

// TestFiveServersVoteAndASixthIsRefused: with two of five gone the fleet goes on.
func TestFiveServersVoteAndASixthIsRefused(t *testing.T) {
	c := newCluster(t, "s1", "s2", "s3", "s4", "s5")
	sixth := c.newServer("s6")
	err := Join(c.ctx(), JoinConfig{Dir: sixth.dir, ID: "s6", Addresses: sixth.addresses, Token: c.token(&redoubtv1.CreateJoinTokenRequest{Role: "server"}), Version: "test", Log: c.log()})
	if err == nil || !strings.Contains(err.Error(), "the fleet has 5 servers") {
		t.Errorf("a sixth server: %v", err)
	}
	c.halt("s1")
	c.halt("s4")
	c.eventually("three of five take a change", func() error {
		_, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1), CommandId: "one"})
		return err
	})
}
