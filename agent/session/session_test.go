package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/agent/driver"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestSessionStoresReportsAndTellsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var batches []*redoubtv1.StatusBatch
		reports := 0
		f := &fleet{t: t}
		stop := f.add("s1", &server{session: answering(4, true, true, func(m *redoubtv1.SessionRequest) {
			if b := m.GetStatus(); b != nil {
				batches = append(batches, b)
			}
			if m.GetReport() != nil {
				reports++
			}
		})})
		defer stop()
		n := &node{servers: []string{"s1"}, report: &redoubtv1.Report{Node: "n1"}}
		put(n, "a", 3)
		put(n, "b", 1)
		r, end := start(t, f, n, nil, nil)
		defer end()
		pass(time.Second)
		if n.cluster != "c1" || n.version != 4 || n.fleets != 1 || reports != 1 {
			t.Fatalf("welcome, assignments, fleet or report went wrong: %+v, %d reports", n, reports)
		}
		if len(batches) != 1 || !batches[0].GetComplete() || len(batches[0].GetStatuses()) != 2 {
			t.Fatalf("a session must begin with all statuses: %v", batches)
		}
		if !r.s.Connected() {
			t.Error("not connected")
		}
		put(n, "a", 4)
		r.statusChanged <- struct{}{}
		pass(time.Second)
		if len(batches) != 2 || batches[1].GetComplete() || len(batches[1].GetStatuses()) != 1 || batches[1].GetStatuses()[0].GetSequence() != 4 {
			t.Fatalf("one change must be told alone: %v", batches)
		}
		pass(time.Minute)
		if len(batches) != 2 {
			t.Fatalf("told again although acknowledged: %v", batches)
		}
		r.reportChanged <- struct{}{}
		pass(time.Second)
		if reports != 2 {
			t.Error("a changed report was not sent")
		}
	})
}

func TestStatusIsRetriedUntilAcknowledgedAndCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ack atomic.Bool
		var batches []*redoubtv1.StatusBatch
		f := &fleet{t: t}
		stop := f.add("s1", &server{session: func(s redoubtv1.AgentService_SessionServer, _ *redoubtv1.Hello) error {
			if err := welcome(s); err != nil {
				return err
			}
			for {
				m, err := s.Recv()
				if err != nil {
					return err
				}
				if h := m.GetHeartbeat(); h != nil {
					_ = beatAck(s, h.GetSequence(), 1)
				}
				if b := m.GetStatus(); b != nil {
					record(func() { batches = append(batches, b) })
					if ack.Load() {
						_ = statusAck(s, b.GetSequence())
					}
				}
			}
		}})
		defer stop()
		n := &node{servers: []string{"s1"}}
		put(n, "a", 1)
		r, end := start(t, f, n, nil, nil)
		defer end()
		for seq := uint64(2); seq <= 50; seq++ {
			put(n, "a", seq)
			select {
			case r.statusChanged <- struct{}{}:
			default:
			}
			pass(100 * time.Millisecond)
		}
		if len(batches) != 1 {
			t.Fatalf("%d batches under way at once", len(batches))
		}
		pass(30 * time.Second)
		if len(batches) < 3 {
			t.Fatal("an unacknowledged batch is not retried")
		}
		ack.Store(true)
		pass(11 * time.Second)
		last := batches[len(batches)-1]
		if s := last.GetStatuses(); len(s) != 1 || s[0].GetSequence() != 50 || !last.GetComplete() {
			t.Fatalf("latest did not win: %v", last)
		}
		count := len(batches)
		pass(time.Minute)
		if len(batches) != count {
			t.Fatal("told again although acknowledged")
		}
	})
}

func TestSilentServerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		hellos := map[string]int{}
		var mute atomic.Bool
		for _, addr := range []string{"s1", "s2"} {
			stop := f.add(addr, &server{session: func(s redoubtv1.AgentService_SessionServer, h *redoubtv1.Hello) error {
				record(func() { hellos[addr]++ })
				if addr == "s1" && mute.Load() {
					<-s.Context().Done()
					return s.Context().Err()
				}
				if err := welcome(s); err != nil {
					return err
				}
				for {
					m, err := s.Recv()
					if err != nil {
						return err
					}
					if b := m.GetHeartbeat(); b != nil && !(addr == "s1" && mute.Load()) {
						_ = beatAck(s, b.GetSequence(), 1)
					}
				}
			}})
			defer stop()
		}
		n := &node{servers: []string{"s1"}}
		r, end := start(t, f, n, nil, nil)
		defer end()
		pass(time.Minute)
		if hellos["s1"] != 1 || !r.s.Connected() {
			t.Fatalf("not steady: %v", hellos)
		}
		n.servers = []string{"s1", "s2"}
		mute.Store(true)
		pass(16 * time.Second)
		if r.s.Connected() && hellos["s2"] == 0 {
			t.Fatal("a silent server still counts")
		}
		pass(30 * time.Second)
		if hellos["s2"] != 1 || !r.s.Connected() {
			t.Fatalf("did not move to the other server: %v", hellos)
		}
		pass(10 * time.Minute)
		if hellos["s2"] != 1 {
			t.Fatalf("did not stay with the good server: %v", hellos)
		}
	})
}

func TestGapAsksForEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		var versions []uint64
		stop := f.add("s1", &server{session: func(s redoubtv1.AgentService_SessionServer, h *redoubtv1.Hello) error {
			record(func() { versions = append(versions, h.GetAssignmentVersion()) })
			if h.GetAssignmentVersion() == 0 {
				return answering(9, true, true, nil)(s, h)
			}
			if err := welcome(s); err != nil {
				return err
			}
			_ = s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Assignments{Assignments: &redoubtv1.Assignments{
				Kind: redoubtv1.Assignments_KIND_INCREMENTAL, FromVersion: 7, Version: 8}}})
			<-s.Context().Done()
			return nil
		}})
		defer stop()
		n := &node{servers: []string{"s1"}, version: 5}
		n.assign = func(a *redoubtv1.Assignments) error {
			if a.GetKind() == redoubtv1.Assignments_KIND_INCREMENTAL && a.GetFromVersion() != n.version {
				return fmt.Errorf("%w: %d", ErrGap, a.GetFromVersion())
			}
			return nil
		}
		_, end := start(t, f, n, nil, nil)
		defer end()
		pass(5 * time.Second)
		if !slices.Equal(versions, []uint64{5, 0}) || n.version != 9 || len(n.stored) != 1 {
			t.Fatalf("hellos with versions %v, held %d, stored %v", versions, n.version, n.stored)
		}
	})
}

func TestLeaseIsRenewedOnlyByHeartbeatsAfterTheAssignments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		terms := make(chan uint64, 100)
		assign := make(chan struct{})
		stop := f.add("s1", &server{session: func(s redoubtv1.AgentService_SessionServer, _ *redoubtv1.Hello) error {
			_ = welcome(s)
			go func() {
				<-assign
				_ = complete(s, 1)
			}()
			term := uint64(5)
			for {
				m, err := s.Recv()
				if err != nil {
					return err
				}
				select {
				case term = <-terms:
				default:
				}
				if h := m.GetHeartbeat(); h != nil {
					time.Sleep(time.Second) // the leader is far
					_ = beatAck(s, h.GetSequence(), term)
				}
			}
		}})
		defer stop()
		n := &node{servers: []string{"s1"}}
		r, end := start(t, f, n, nil, nil)
		defer end()
		pass(20 * time.Second)
		if len(n.renewed) != 0 || !r.s.Connected() {
			t.Fatalf("renewed %v before the assignments of this session were stored (connected %v)", n.renewed, r.s.Connected())
		}
		stored := n.Clock()
		close(assign)
		pass(10 * time.Second)
		if len(n.renewed) == 0 {
			t.Fatal("not renewed")
		}
		for _, at := range n.renewed {
			if at < stored || at > n.Clock()-time.Second {
				t.Errorf("renewed as of %s: assignments came at %s, now is %s", at, stored, n.Clock())
			}
		}
		terms <- 4
		pass(6 * time.Second)
		count := len(n.renewed)
		pass(20 * time.Second)
		if len(n.renewed) != count {
			t.Error("an older term renewed the lease")
		}
	})
}

// TestAnAgentThatStoodStillAsksAnewBeforeItSpeaks: what was given up while it
// was stopped must be known before an acknowledgement can renew a lease.
func TestAnAgentThatStoodStillAsksAnewBeforeItSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		hellos, late := 0, 0
		var woke time.Duration
		n := &node{servers: []string{"s1"}}
		stop := f.add("s1", &server{session: func(s redoubtv1.AgentService_SessionServer, _ *redoubtv1.Hello) error {
			record(func() { hellos++ })
			_ = welcome(s)
			_ = complete(s, 1)
			for {
				m, err := s.Recv()
				if err != nil {
					return err
				}
				if h := m.GetHeartbeat(); h != nil {
					record(func() {
						if woke != 0 && hellos == 1 {
							late++
						}
					})
					_ = beatAck(s, h.GetSequence(), 1)
				}
			}
		}})
		defer stop()
		_, end := start(t, f, n, nil, nil)
		defer end()
		pass(20 * time.Second)
		if hellos != 1 || len(n.renewed) == 0 {
			t.Fatalf("%d sessions, %d renewals in ordinary times", hellos, len(n.renewed))
		}
		woke = n.Clock()
		n.suspended.Store(int64(time.Hour))
		pass(20 * time.Second)
		if hellos != 2 || late != 0 {
			t.Errorf("%d sessions and %d heartbeats on the old one after it stood still; want 2 and 0", hellos, late)
		}
	})
}

func TestGoodbyeMovesToAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		var leave atomic.Bool
		at := map[string]time.Duration{}
		n := &node{servers: []string{"s1", "s2"}}
		for _, addr := range n.servers {
			stop := f.add(addr, &server{session: func(s redoubtv1.AgentService_SessionServer, h *redoubtv1.Hello) error {
				record(func() { at[addr] = n.Clock() })
				if leave.Load() {
					return answering(2, true, true, nil)(s, h)
				}
				go func() {
					for !leave.Load() {
						time.Sleep(time.Second)
					}
					_ = s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Goodbye{Goodbye: &redoubtv1.Goodbye{Reason: "upgrade"}}})
				}()
				return answering(1, true, true, nil)(s, h)
			}})
			defer stop()
		}
		_, end := start(t, f, n, nil, nil)
		defer end()
		pass(30 * time.Second)
		if len(at) != 1 {
			t.Fatalf("dialled more than one: %v", at)
		}
		leave.Store(true)
		before := n.Clock()
		pass(5 * time.Second)
		if len(at) != 2 {
			// Its list is shuffled: it may come back to the same one once, which
			// then stays; the point is that it has a session.
			t.Logf("came back to the same server")
		}
		if n.version != 2 {
			t.Fatalf("no new session after a goodbye at %s: %v", before, at)
		}
	})
}

func TestMovesBeforeTheCertificateEndsLosingNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		told := map[uint64]bool{}
		sessions := 0
		stop := f.add("s1", &server{session: func(s redoubtv1.AgentService_SessionServer, h *redoubtv1.Hello) error {
			record(func() { sessions++ })
			return answering(1, true, true, func(m *redoubtv1.SessionRequest) {
				for _, st := range m.GetStatus().GetStatuses() {
					told[st.GetSequence()] = true
				}
			})(s, h)
		}})
		defer stop()
		n := &node{servers: []string{"s1"}}
		r, end := start(t, f, n, nil, func(context.Context) time.Time { return time.Now().Add(10 * time.Second) })
		defer end()
		last := uint64(0)
		for range 100 {
			last++
			put(n, "a", last)
			select {
			case r.statusChanged <- struct{}{}:
			default:
			}
			pass(500 * time.Millisecond)
			if !r.s.Connected() {
				t.Fatal("lost touch while moving")
			}
		}
		pass(time.Second)
		if sessions < 4 || !told[last] {
			t.Errorf("%d sessions, last status told: %v", sessions, told[last])
		}
	})
}

func TestLastStatusIsToldAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		var last atomic.Uint64
		stop := f.add("s1", &server{session: answering(1, true, true, func(m *redoubtv1.SessionRequest) {
			for _, st := range m.GetStatus().GetStatuses() {
				last.Store(st.GetSequence())
			}
		})})
		defer stop()
		n := &node{servers: []string{"s1"}}
		put(n, "a", 1)
		_, end := start(t, f, n, nil, nil)
		pass(time.Second)
		put(n, "a", 2)
		before := time.Now()
		end()
		if last.Load() != 2 {
			t.Error("the last status was not told")
		}
		if d := time.Since(before); d > 3*time.Second {
			t.Errorf("the end took %s", d)
		}
	})
}

func TestEndIsQuickWhateverTheServerDoes(t *testing.T) {
	for name, s := range map[string]*server{
		"takes nothing": {session: func(s redoubtv1.AgentService_SessionServer, _ *redoubtv1.Hello) error {
			_ = welcome(s)
			<-s.Context().Done()
			return nil
		}},
		"never welcomes": {session: func(s redoubtv1.AgentService_SessionServer, _ *redoubtv1.Hello) error {
			<-s.Context().Done()
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fleet{t: t}
				stop := f.add("s1", s)
				defer stop()
				n := &node{servers: []string{"s1"}}
				put(n, "a", 1)
				_, end := start(t, f, n, nil, nil)
				pass(time.Second)
				before := time.Now()
				end()
				if d := time.Since(before); d > 3*time.Second {
					t.Errorf("the end took %s", d)
				}
			})
		})
	}
}

func TestDeadServersAreTriedWithGrowingDelayAndToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		n := &node{servers: []string{"s1"}}
		r, end := start(t, f, n, nil, nil)
		pass(10 * time.Minute)
		tries := len(f.dialled)
		if tries < 40 || tries > 90 {
			t.Errorf("%d tries in ten minutes", tries)
		}
		end()
		if c := strings.Count(r.log.String(), "no session"); c == 0 || c > 2 {
			t.Errorf("told %d times:\n%s", c, r.log)
		}
	})
}

func TestANewIdentityEndsTheWaitForTheNextRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		r, end := start(t, f, &node{servers: []string{"s1"}}, nil, nil)
		defer end()
		pass(10 * time.Minute)
		// Wherever in its wait it is: each poke is an attempt at once, and the
		// longest wait without one is MaxDelay.
		for i := range 20 {
			pass(time.Duration(i) * 100 * time.Millisecond)
			before := len(f.dialled)
			r.tryNow <- struct{}{}
			pass(time.Millisecond)
			if len(f.dialled) != before+1 {
				t.Fatalf("poke %d: %d attempts", i, len(f.dialled)-before)
			}
		}
		for range 10 {
			before := len(f.dialled)
			pass(r.s.cfg.MaxDelay + time.Millisecond)
			if len(f.dialled) == before {
				t.Errorf("no attempt in %s", r.s.cfg.MaxDelay)
			}
		}
	})
}

func TestHintsOfAStormAreOneMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		var messages, hints atomic.Int64
		stop := f.add("s1", &server{session: answering(1, true, true, func(m *redoubtv1.SessionRequest) {
			if h := m.GetHints(); h != nil {
				messages.Add(1)
				hints.Add(int64(len(h.GetHints())))
			}
		})})
		defer stop()
		n := &node{servers: []string{"s1"}}
		r, end := start(t, f, n, nil, nil)
		defer end()
		pass(time.Second)
		for range 40 {
			r.hints <- &redoubtv1.Hint{Node: "n2"}
		}
		pass(time.Second)
		if hints.Load() != 40 || messages.Load() > 10 {
			t.Errorf("%d hints in %d messages", hints.Load(), messages.Load())
		}
	})
}

// attached runs one StreamOpen against the agent and lets talk play the server.
func attached(t *testing.T, open *redoubtv1.StreamOpen, b Bulk, talk func(redoubtv1.AgentService_AttachServer) error) {
	f := &fleet{t: t}
	stop := f.add("s1", &server{
		session: func(s redoubtv1.AgentService_SessionServer, h *redoubtv1.Hello) error {
			_ = welcome(s)
			open.StreamId, open.ServerAddress, open.Uid = "x", "s1", "a"
			_ = s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StreamOpen{StreamOpen: open}})
			for {
				m, err := s.Recv()
				if err != nil {
					return err
				}
				if h := m.GetHeartbeat(); h != nil {
					_ = beatAck(s, h.GetSequence(), 1)
				}
			}
		},
		attach: func(s redoubtv1.AgentService_AttachServer) error {
			if m, err := s.Recv(); err != nil || m.GetStreamId() != "x" {
				return fmt.Errorf("first message is %v, %v", m, err)
			}
			return talk(s)
		},
	})
	defer stop()
	n := &node{servers: []string{"s1"}}
	_, end := start(t, f, n, b, nil)
	defer end()
	pass(5 * time.Second)
}

func execRequest(r *redoubtv1.ExecRequest) *redoubtv1.AttachResponse {
	return &redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Exec{Exec: r}}
}

func TestExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		code, started := int32(-1), ""
		open := &redoubtv1.StreamOpen{Request: &redoubtv1.StreamOpen_Exec{Exec: &redoubtv1.ExecStart{Command: []string{"cat"}, Terminal: true, Size: &redoubtv1.TerminalSize{Width: 80, Height: 24}}}}
		attached(t, open, &bulk{exec: func(ctx context.Context, uid string, spec driver.ExecSpec, st driver.Streams, begin func(string)) (int, error) {
			if uid != "a" || spec.Command[0] != "cat" || spec.Width != 80 || !spec.Terminal {
				t.Errorf("exec of %s: %+v", uid, spec)
			}
			begin("web-1")
			if _, err := io.Copy(st.Stdout, st.Stdin); err != nil {
				return 0, err
			}
			if size := <-st.Resize; size != [2]uint16{100, 40} {
				t.Errorf("size %v", size)
			}
			if sig := <-st.Signals; sig != "SIGINT" {
				t.Errorf("signal %s", sig)
			}
			return 42, nil
		}}, func(s redoubtv1.AgentService_AttachServer) error {
			_ = s.Send(execRequest(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Stdin{Stdin: bytes.Repeat([]byte("x"), 100_000)}}))
			_ = s.Send(execRequest(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_CloseStdin{CloseStdin: true}}))
			_ = s.Send(execRequest(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Resize{Resize: &redoubtv1.TerminalSize{Width: 100, Height: 40}}}))
			_ = s.Send(execRequest(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Signal{Signal: "SIGINT"}}))
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				switch e := m.GetExec().GetMessage().(type) {
				case *redoubtv1.ExecResponse_Stdout:
					out.Write(e.Stdout)
				case *redoubtv1.ExecResponse_ExitCode:
					code = e.ExitCode
				case *redoubtv1.ExecResponse_Started:
					started = e.Started
				default:
					t.Errorf("unexpected %v", m)
				}
			}
		})
		if out.Len() != 100_000 || code != 42 || started != "web-1" {
			t.Errorf("%d bytes, code %d, started %q", out.Len(), code, started)
		}
	})
}

func TestExecEndsWhenItsUserGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		open := &redoubtv1.StreamOpen{Request: &redoubtv1.StreamOpen_Exec{Exec: &redoubtv1.ExecStart{Command: []string{"sleep"}}}}
		attached(t, open, &bulk{exec: func(ctx context.Context, _ string, _ driver.ExecSpec, _ driver.Streams, _ func(string)) (int, error) {
			<-ctx.Done()
			ended = true
			return 0, ctx.Err()
		}}, func(redoubtv1.AgentService_AttachServer) error { return status.Error(codes.Canceled, "user left") })
		if !ended {
			t.Error("the process was left running")
		}
	})
}

// An agent begins nothing before the server has said that a caller is there; a
// server that is older does not say it.
func TestNothingBeginsForACallerWhoHasGone(t *testing.T) {
	for name, tt := range map[string]struct {
		confirms bool
		say      *redoubtv1.AttachResponse
		runs     bool
	}{
		"the caller is there":        {true, &redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Paired{Paired: true}}, true},
		"the caller has gone":        {true, nil, false},
		"another word comes first":   {true, execRequest(&redoubtv1.ExecRequest{}), false},
		"a server that says no such": {false, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ran atomic.Bool
				open := &redoubtv1.StreamOpen{Confirms: tt.confirms, Request: &redoubtv1.StreamOpen_Exec{Exec: &redoubtv1.ExecStart{Command: []string{"x"}}}}
				attached(t, open, &bulk{exec: func(context.Context, string, driver.ExecSpec, driver.Streams, func(string)) (int, error) {
					ran.Store(true)
					return 0, nil
				}}, func(s redoubtv1.AgentService_AttachServer) error {
					time.Sleep(time.Second)
					if tt.confirms && ran.Load() {
						t.Error("it began before the server said anything")
					}
					if tt.say == nil && tt.confirms {
						return nil
					}
					if tt.say != nil {
						_ = s.Send(tt.say)
					}
					for {
						if _, err := s.Recv(); err != nil {
							return nil
						}
					}
				})
				if ran.Load() != tt.runs {
					t.Errorf("began: %v", ran.Load())
				}
			})
		})
	}
}

func TestErrorsReachTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got *redoubtv1.AttachError
		open := &redoubtv1.StreamOpen{Request: &redoubtv1.StreamOpen_Exec{Exec: &redoubtv1.ExecStart{Command: []string{"x"}}}}
		attached(t, open, &bulk{exec: func(context.Context, string, driver.ExecSpec, driver.Streams, func(string)) (int, error) {
			return 0, fmt.Errorf("exec in web-1: %w", driver.ErrNotRunning)
		}}, func(s redoubtv1.AgentService_AttachServer) error {
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				got = m.GetError()
			}
		})
		if got == nil || codes.Code(got.GetCode()) != codes.FailedPrecondition || !strings.Contains(got.GetMessage(), "web-1") {
			t.Errorf("the user sees %v", got)
		}
	})
}

// TestAnAgentThatEndsCutsItsStreamsOff: a log that is followed while its agent is
// stopped must not look as if the instance had said everything.
func TestAnAgentThatEndsCutsItsStreamsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last error
		open := &redoubtv1.StreamOpen{Request: &redoubtv1.StreamOpen_Logs{Logs: &redoubtv1.LogsRequest{Follow: true, Tail: -1}}}
		attached(t, open, &bulk{logs: func(ctx context.Context, _ string, _ LogOptions, hand func(LogChunk) error) error {
			if err := hand(LogChunk{Data: []byte("half a ")}); err != nil {
				return err
			}
			<-ctx.Done()
			return nil // as following ends
		}}, func(s redoubtv1.AgentService_AttachServer) error {
			for {
				if _, last = s.Recv(); last != nil {
					return nil
				}
			}
		})
		if last == nil || errors.Is(last, io.EOF) {
			t.Errorf("the server sees %v", last)
		}
	})
}

func TestLogsSlowReaderHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wrote atomic.Int64
		open := &redoubtv1.StreamOpen{Request: &redoubtv1.StreamOpen_Logs{Logs: &redoubtv1.LogsRequest{Follow: true, Tail: -1}}}
		total := 0
		attached(t, open, &bulk{logs: func(ctx context.Context, uid string, opts LogOptions, hand func(LogChunk) error) error {
			if opts.Tail != -1 || !opts.Follow {
				t.Errorf("options %+v", opts)
			}
			for range 100 {
				if err := hand(LogChunk{Data: bytes.Repeat([]byte("y"), 40_000)}); err != nil {
					return err
				}
				wrote.Add(40_000)
			}
			return nil
		}}, func(s redoubtv1.AgentService_AttachServer) error {
			time.Sleep(2 * time.Second)
			if w := wrote.Load(); w > 1<<20 {
				t.Errorf("%d bytes were buffered for a reader that does not read", w)
			}
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				total += len(m.GetLogs())
			}
		})
		if total != 4_000_000 {
			t.Errorf("%d bytes arrived", total)
		}
	})
}

// Lies of a pool that go on and on cost a few messages a second, and no heartbeat.
func TestAFloodOfHintsLeavesRoomForHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		var messages, beats atomic.Int64
		stop := f.add("s1", &server{session: answering(1, true, true, func(m *redoubtv1.SessionRequest) {
			switch {
			case m.GetHints() != nil:
				messages.Add(1)
			case m.GetHeartbeat() != nil:
				beats.Add(1)
			}
		})})
		defer stop()
		n := &node{servers: []string{"s1"}}
		r, end := start(t, f, n, nil, nil)
		defer end()
		pass(time.Second)
		before := beats.Load()
		for range 2000 { // ten seconds
			select {
			case r.hints <- &redoubtv1.Hint{Node: "n2"}:
			default:
			}
			pass(5 * time.Millisecond)
		}
		if n := messages.Load(); n < 10 || n > 51 {
			t.Errorf("%d messages of hints in ten seconds", n)
		}
		if beats.Load() == before {
			t.Error("no heartbeat in ten seconds")
		}
	})
}

// A server that asks for streams without end has the agent open so many and no
// more.
func TestAServerOpensNoMoreStreamsThanCanBeRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t}
		var most, open atomic.Int64
		defer f.add("s1", &server{attach: func(s redoubtv1.AgentService_AttachServer) error {
			if n := open.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer open.Add(-1)
			<-s.Context().Done() // never pairs
			return nil
		}})()
		s := New(Config{Node: "n1", Streams: 10, Execs: 5}, Deps{Dial: f.dial, Log: slog.New(slog.DiscardHandler), Bulk: &bulk{}})
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 5000 {
			s.open(ctx, &redoubtv1.StreamOpen{StreamId: fmt.Sprint(i), ServerAddress: "s1", Confirms: true, Request: &redoubtv1.StreamOpen_Logs{Logs: &redoubtv1.LogsRequest{}}})
		}
		time.Sleep(time.Second)
		if n := most.Load(); n != 10+5+maxRefusals || len(s.opens) != cap(s.opens) {
			t.Errorf("%d streams are open at once, %d counted", n, len(s.opens))
		}
		cancel()
		s.bulk.Wait()
		s.pool.close()
		if len(s.opens) != 0 {
			t.Errorf("%d places are not given back", len(s.opens))
		}
	})
}
