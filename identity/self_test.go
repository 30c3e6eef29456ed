package identity_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/ca"
)

func TestServerRenewsItselfAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 2 * time.Minute
		a, trust := authority(t, td)
		disk := open(t, t.TempDir())
		if err := disk.SetBundle(trust); err != nil {
			t.Fatal(err)
		}
		src, err := identity.NewSelfSource(disk, a, mustID(t, "spiffe://fleet.test/server/s1"), ttl, quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- src.Run(ctx) }()
		serials := map[string]bool{}
		for range 600 {
			time.Sleep(time.Second)
			svid, err := src.GetX509SVID()
			if err != nil {
				t.Fatal(err)
			}
			leaf := svid.Certificates[0]
			if left := time.Until(leaf.NotAfter); left < ttl/2-2*time.Second {
				t.Fatalf("only %s are left", left)
			}
			if _, _, err := x509svid.Verify(svid.Certificates, src); err != nil {
				t.Fatal(err)
			}
			serials[leaf.SerialNumber.String()] = true
		}
		if n := len(serials); n < 10 || n > 12 {
			t.Fatalf("%d SVIDs in ten minutes", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A server that joins serves what another signed for it until its own
// authority is in the bundle.
func TestJoiningServerWaitsForItsAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, trust := authority(t, td)
		own, err := ca.Create(t.TempDir(), td)
		if err != nil {
			t.Fatal(err)
		}
		disk := open(t, t.TempDir())
		src, err := identity.NewSelfSource(disk, own, mustID(t, "spiffe://fleet.test/server/s2"), time.Hour, quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- src.Run(ctx) }()
		time.Sleep(time.Minute)
		if _, err := src.GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) {
			t.Fatalf("before joining: %v", err)
		}
		given := sign(t, first, "spiffe://fleet.test/server/s2", time.Hour)
		if err := src.SetBundle(trust); err != nil {
			t.Fatal(err)
		}
		if err := src.Set(given); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if svid, err := src.GetX509SVID(); err != nil || svid != given {
			t.Fatalf("while joining: %v, %v", svid, err)
		}
		both := x509bundle.FromX509Authorities(td, certificates(first, own))
		if err := src.SetBundle(both); err != nil {
			t.Fatal(err)
		}
		svid, err := src.GetX509SVID()
		if err != nil || svid.Certificates[0].CheckSignatureFrom(own.Certificate()) != nil {
			t.Fatalf("after joining the SVID is not of the own authority: %v", err)
		}
		cancel()
		<-done
	})
}

func TestSelfSourceIsForServers(t *testing.T) {
	a, _ := authority(t, td)
	if _, err := identity.NewSelfSource(open(t, t.TempDir()), a, mustID(t, "spiffe://fleet.test/node/n1"), time.Hour, quiet()); err == nil {
		t.Fatal("a node signed itself")
	}
	if _, err := a.SignServer(nil, mustID(t, "spiffe://fleet.test/user/u"), time.Hour); err == nil {
		t.Fatal("SignServer signed a user")
	}
}

func TestRenewalIsNotLateOnALaggingClock(t *testing.T) {
	a, _ := authority(t, td)
	svid := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	now := time.Now()
	for _, c := range []struct {
		name     string
		now      time.Time
		min, max time.Duration
	}{
		{"right", now, 29 * time.Minute, 30 * time.Minute},
		{"lags by three minutes", now.Add(-3 * time.Minute), 30 * time.Minute, 30 * time.Minute},
		{"in 1970", time.Unix(100, 0), 30 * time.Minute, 30 * time.Minute},
		{"ahead by ten minutes", now.Add(10 * time.Minute), 19 * time.Minute, 20 * time.Minute},
		{"past half", now.Add(31 * time.Minute), 0, 0},
		{"expired", now.Add(2 * time.Hour), 0, 0},
	} {
		if wait := identity.RenewIn(svid, c.now); wait < c.min-time.Second || wait > c.max {
			t.Errorf("%s: waits %s", c.name, wait)
		}
	}
}

func TestWrongClockIsNamed(t *testing.T) {
	a, trust := authority(t, td)
	src := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour), trust)
	if err := identity.CheckClock(src, time.Now()); err != nil {
		t.Fatal(err)
	}
	err := identity.CheckClock(src, time.Unix(60, 0))
	if err == nil || !strings.Contains(err.Error(), "1970-01-01") || !strings.Contains(err.Error(), "set the clock") {
		t.Fatalf("error is %v", err)
	}
}

func TestDrainLeavesAQuarterAndSpreads(t *testing.T) {
	end := time.Now()
	seen := map[time.Time]bool{}
	for range 100 {
		at := identity.DrainAt(end, 80*time.Minute)
		if left := end.Sub(at); left < 20*time.Minute || left > 30*time.Minute {
			t.Fatalf("%s are left", left)
		}
		seen[at] = true
	}
	if len(seen) < 50 {
		t.Fatalf("only %d different moments of 100", len(seen))
	}
}
