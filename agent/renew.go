package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// renewer keeps the node's SVID valid: at half of its life through any server,
// and after it has expired by the enrolled key.
type renewer struct {
	node  string
	src   Identity
	out   writable
	store *store.Store
	// servers are API addresses, as known now.
	servers func() []string
	dial    session.Dialer
	raw     DialContext
	// renewed is called when the node has a new SVID.
	renewed func()
	log     *slog.Logger
}

func (r *renewer) run(ctx context.Context) error {
	delay := time.Duration(0)
	for {
		svid, err := r.src.GetX509SVID()
		if err != nil {
			return fmt.Errorf("renew identity: %w", err)
		}
		wait := identity.RenewIn(svid, time.Now())
		if wait == 0 || delay > 0 {
			err := r.renew(ctx, svid)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				delay = 0
				continue
			}
			delay = min(max(2*delay, time.Second), 15*time.Second)
			r.log.Warn("identity not renewed", "err", err, "expires", svid.Certificates[0].NotAfter, "again_in", delay)
			wait = delay
		}
		// Timers stand still in suspend: look again every minute.
		wait = min(wait, time.Minute)
		t := time.NewTimer(wait + rand.N(wait/10+time.Millisecond))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (r *renewer) renew(ctx context.Context, svid *x509svid.SVID) error {
	if err := identity.CheckClock(r.src, time.Now()); err != nil {
		return err
	}
	if time.Now().After(svid.Certificates[0].NotAfter) {
		return r.renewExpired(ctx, svid)
	}
	csr, err := attest.NewCSR(svid.PrivateKey)
	if err != nil {
		return err
	}
	return anyOf(ctx, r.servers(), func(ctx context.Context, server string) error {
		conn, err := r.dial(server, "")
		if err != nil {
			return err
		}
		defer conn.Close()
		resp, err := redoubtv1.NewAgentServiceClient(conn).RenewNodeIdentity(ctx, &redoubtv1.RenewNodeIdentityRequest{Csr: csr})
		if err != nil {
			return err
		}
		return r.take(svid, resp.GetCertificates(), resp.GetBundle())
	})
}

// renewExpired shows the certificate that ended and signs a nonce with its key.
func (r *renewer) renewExpired(ctx context.Context, svid *x509svid.SVID) error {
	td := svid.ID.TrustDomain()
	opts := append(dialOptions(r.raw), grpc.WithTransportCredentials(attest.BundleCredentials(r.src, td)))
	return anyOf(ctx, r.store.Fleet().GetEnrollServers(), func(ctx context.Context, server string) error {
		conn, err := grpc.NewClient(target(server), opts...)
		if err != nil {
			return err
		}
		defer conn.Close()
		client := redoubtv1.NewEnrollmentServiceClient(conn)
		nonce, err := client.GetRenewalNonce(ctx, &redoubtv1.GetRenewalNonceRequest{Node: r.node})
		if err != nil {
			return err
		}
		proof, err := attest.NewRenewal(svid, nonce.GetNonce())
		if err != nil {
			return err
		}
		resp, err := client.RenewExpired(ctx, &redoubtv1.RenewExpiredRequest{
			Node: r.node, Csr: proof.CSR, Nonce: proof.Challenge, Signature: proof.Signature, Chain: proof.Chain,
		})
		if err != nil {
			return err
		}
		if err := r.take(svid, resp.GetCertificates(), resp.GetBundle()); err != nil {
			return err
		}
		return r.store.SetFleet(withServers(r.store.Fleet(), resp.GetServers(), resp.GetEnrollServers()))
	})
}

func withServers(f *redoubtv1.FleetUpdate, servers, enroll []string) *redoubtv1.FleetUpdate {
	f.Servers, f.EnrollServers = servers, enroll // empty ones keep what is held
	return f
}

// take keeps a new certificate of the same key and name.
func (r *renewer) take(old *x509svid.SVID, certs, bundle [][]byte) error {
	chain, err := chainOf(certs)
	if err != nil {
		return err
	}
	next, err := identity.NewSVID(old.PrivateKey, chain)
	if err != nil {
		return err
	}
	if next.ID != old.ID {
		return fmt.Errorf("renewed identity is of %s, this node is %s", next.ID, old.ID)
	}
	if len(bundle) > 0 {
		b, err := bundleOf(old.ID.TrustDomain(), bundle)
		if err != nil {
			return err
		}
		if err := r.out.SetBundle(b); err != nil {
			return err
		}
	}
	if err := r.out.Set(next); err != nil {
		return err
	}
	r.log.Info("identity renewed", "node", r.node, "expires", chain[0].NotAfter)
	r.renewed()
	return nil
}

// anyOf tries servers in random order until one succeeds.
func anyOf(ctx context.Context, servers []string, try func(context.Context, string) error) error {
	if len(servers) == 0 {
		return errors.New("no server is known")
	}
	var errs []error
	for _, i := range rand.Perm(len(servers)) {
		tryCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := try(tryCtx, servers[i])
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", servers[i], err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}
