package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// await polls until ok says so.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestAServerUnderSiege lets a hostile but authenticated user do to a real server
// process what it can do to its memory, and holds the server to its sums while
// another user is served.
func TestAServerUnderSiege(t *testing.T) {
	s := besiege(t)
	mallory := s.as("user/mallory")
	enemies := func(n int, src func(i int) (*enemy, error)) []*enemy {
		s.t.Helper()
		out := make([]*enemy, n)
		var wg sync.WaitGroup
		gate := make(chan struct{}, 16)
		for i := range out {
			wg.Go(func() {
				gate <- struct{}{}
				defer func() { <-gate }()
				e, err := src(i)
				if err != nil {
					s.t.Errorf("connection %d: %v", i, err)
					return
				}
				out[i] = e
			})
		}
		wg.Wait()
		if s.t.Failed() {
			s.t.FailNow()
		}
		return out
	}
	leave := func(list []*enemy) {
		for _, e := range list {
			e.close()
		}
	}

	t.Run("handshakes that never end, from a hundred addresses", func(t *testing.T) {
		s.t = t
		s.during(200, func() {
			var silent []net.Conn
			defer func() {
				for _, c := range silent {
					c.Close()
				}
			}()
			for source := range 100 {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, byte(source/4), byte(source+1))}, Timeout: 10 * time.Second}
				for range 40 {
					c, err := d.Dial("tcp", s.api)
					if err != nil {
						t.Fatal(err)
					}
					silent = append(silent, c)
				}
			}
			for n := range 10 {
				begun := time.Now()
				e, err := s.enemy(s.as("user/late"), 65535, net.IPv4(127, 77, 0, byte(n+1)))
				if err != nil {
					t.Fatalf("newcomer %d is kept out: %v", n, err)
				}
				e.close()
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("newcomer %d is let in after %s", n, took)
				}
			}
		})
	})

	t.Run("frames that cost the sender nothing", func(t *testing.T) {
		s.t = t
		for name, flood := range map[string]func(e *enemy) error{
			"streams that are reset at once": func(e *enemy) error {
				for range 8_000 {
					stream, err := e.open(redoubtv1.FleetService_GetServerInfo_FullMethodName)
					if err != nil {
						return err
					}
					e.mu.Lock()
					err = e.fr.WriteRSTStream(stream, http2.ErrCodeCancel)
					e.mu.Unlock()
					if err != nil {
						return err
					}
				}
				return nil
			},
			"pings": func(e *enemy) error {
				for range 30_000 {
					e.mu.Lock()
					err := e.fr.WritePing(false, [8]byte{})
					e.mu.Unlock()
					if err != nil {
						return err
					}
				}
				return nil
			},
			"settings": func(e *enemy) error {
				for range 30_000 {
					e.mu.Lock()
					err := e.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16384})
					e.mu.Unlock()
					if err != nil {
						return err
					}
				}
				return nil
			},
			"headers without an end": func(e *enemy) error {
				e.mu.Lock()
				defer e.mu.Unlock()
				block := headers(redoubtv1.FleetService_GetServerInfo_FullMethodName, "x-filler", strings.Repeat("y", 8<<10))
				if err := e.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: e.next, BlockFragment: block}); err != nil {
					return err
				}
				for range 10_000 {
					if err := e.fr.WriteContinuation(e.next, false, block); err != nil {
						return err
					}
				}
				return nil
			},
			"metadata of megabytes": func(e *enemy) error {
				e.mu.Lock()
				defer e.mu.Unlock()
				block := headers(redoubtv1.FleetService_GetServerInfo_FullMethodName, "x-filler", strings.Repeat("y", 4<<20))
				if err := e.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: e.next, BlockFragment: block[:16384]}); err != nil {
					return err
				}
				for block = block[16384:]; len(block) > 0; {
					n := min(len(block), 16384)
					if err := e.fr.WriteContinuation(e.next, n == len(block), block[:n]); err != nil {
						return err
					}
					block = block[n:]
				}
				return nil
			},
		} {
			t.Run(name, func(t *testing.T) {
				s.t = t
				s.during(150, func() {
					list := enemies(4, func(int) (*enemy, error) { return s.enemy(mallory, 65535, nil) })
					defer leave(list)
					var wg sync.WaitGroup
					for _, e := range list {
						wg.Go(func() {
							_ = e.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
							_ = flood(e) // that it is cut off is as good
						})
					}
					wg.Wait()
				})
			})
		}
	})

	t.Run("small messages of many parts", func(t *testing.T) {
		s.t = t
		// Two bytes each, and hundreds once they are read.
		w, err := proto.Marshal(&redoubtv1.Workload{Containers: []*redoubtv1.Container{{}}})
		if err != nil {
			t.Fatal(err)
		}
		w = bytes.Repeat(w, 500_000)
		parts := append(protowire.AppendVarint([]byte{0x0a}, uint64(len(w))), w...)
		s.during(250, func() {
			list := enemies(4, func(int) (*enemy, error) { return s.enemy(mallory, 65535, nil) })
			defer leave(list)
			for range 20 {
				for _, e := range list {
					stream, err := e.open(redoubtv1.FleetService_ApplyWorkload_FullMethodName)
					if err == nil {
						err = e.say(stream, len(parts), parts, true)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			await(t, "all are answered", func() bool {
				n := 0
				for _, e := range list {
					x, o := e.refusals()
					n += x + o
				}
				return n == 80
			})
		})
	})

	t.Run("answers that nobody reads", func(t *testing.T) {
		s.t = t
		admin := s.conn(s.admin.Source())
		defer admin.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for n := range 4 {
			large := &redoubtv1.Workload{Name: fmt.Sprint("large-", n), Kind: "Service", Containers: []*redoubtv1.Container{{Name: "c", Image: "toolbox"}}}
			for i := range 7 {
				large.Containers[0].Env = append(large.Containers[0].Env, &redoubtv1.EnvVar{Name: fmt.Sprint("V", i), Value: strings.Repeat("x", 32<<10)})
			}
			if _, err := redoubtv1.NewFleetServiceClient(admin).ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: large}); err != nil {
				t.Fatal(err)
			}
		}
		s.during(250, func() {
			// The administrator's own key, in bad hands: 1500 answers of 900 KB.
			list := enemies(6, func(int) (*enemy, error) { return s.enemy(s.admin.Source(), 0, nil) })
			defer leave(list)
			refused := func() (n int) {
				for _, e := range list {
					x, other := e.refusals()
					if other > 0 {
						t.Fatalf("%d calls ended otherwise", other)
					}
					n += x
				}
				return n
			}
			for range 250 {
				for _, e := range list {
					stream, err := e.open(redoubtv1.FleetService_ListWorkloads_FullMethodName)
					if err == nil {
						err = e.send(stream, message(0, nil), true)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			await(t, "those beyond the limit are refused", func() bool { return refused() >= 1500-80 })
		})
		// The connections are gone, and with them what was held against the user.
		await(t, "the same user is served again", func() bool {
			_, err := redoubtv1.NewFleetServiceClient(admin).ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{})
			return err == nil
		})
	})

	t.Run("a hundred thousand streams", func(t *testing.T) {
		s.t = t
		s.during(400, func() {
			list := enemies(400, func(int) (*enemy, error) { return s.enemy(mallory, 65535, nil) })
			defer leave(list)
			var wg sync.WaitGroup
			for _, e := range list {
				wg.Go(func() {
					for range 250 {
						if _, err := e.open(redoubtv1.FleetService_Exec_FullMethodName); err != nil {
							t.Errorf("a stream: %v", err)
							return
						}
					}
				})
			}
			wg.Wait()
			await(t, "all but 2048 are refused", func() bool {
				exhausted, other := 0, 0
				for _, e := range list {
					x, o := e.refusals()
					exhausted, other = exhausted+x, other+o
				}
				if other > 0 {
					t.Fatalf("%d streams ended otherwise", other)
				}
				return exhausted >= 100_000-2048
			})
		})
	})

	t.Run("messages without an end", func(t *testing.T) {
		s.t = t
		s.during(600, func() {
			list := enemies(8, func(int) (*enemy, error) { return s.enemy(mallory, 65535, nil) })
			defer leave(list)
			var wg sync.WaitGroup
			var cut atomic.Int64
			for _, e := range list {
				wg.Go(func() {
					// Each has the server make room for 4 MiB, and all but the last
					// byte of them comes: 8 × 60 × 4 MiB.
					body := make([]byte, 4<<20-1)
					for range 60 {
						stream, err := e.open(redoubtv1.FleetService_Exec_FullMethodName)
						if err == nil {
							err = e.say(stream, 4<<20, body, false)
						}
						if err != nil {
							cut.Add(1)
							return
						}
					}
				})
			}
			wg.Wait()
			if cut.Load() == 0 {
				t.Error("nobody was stopped")
			}
		})
		if !strings.Contains(s.log(), "user mallory has sent") {
			t.Error("the server's log does not tell who was cut off for what")
		}
	})
}
