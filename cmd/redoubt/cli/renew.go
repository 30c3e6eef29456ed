package cli

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	renewTimeout = 5 * time.Second
	renewAgain   = time.Minute // after a try that failed
	// refreshAfter a context was written its servers are asked for again, so
	// that it knows the others when one is gone; sooner while it knows but one.
	refreshAfter = 10 * time.Minute
	refreshLone  = 2 * time.Second
)

// renew replaces the SVID in its second half. A failure is told and borne: the
// SVID is still good, and a later call tries again.
func (c *fleetConn) renew(ctx context.Context) {
	c.mu.Lock()
	svid := c.file.SVID
	due := !c.renewing && identity.RenewIn(svid, time.Now()) == 0 && time.Since(c.renewed) > renewAgain
	c.mu.Unlock()
	if !due {
		return
	}
	if err := c.renewNow(ctx); err != nil && ctx.Err() == nil {
		c.say("the identity of context %s ends in %s and could not be renewed yet: %s",
			c.name, age(time.Until(svid.Certificates[0].NotAfter)), plain(err))
	}
}

// refresh learns of new servers once a command has done its work.
func (c *fleetConn) refresh(ctx context.Context) {
	servers, answered := c.look()
	st, err := os.Stat(c.path)
	if err != nil || !answered || ctx.Err() != nil {
		return
	}
	old := time.Since(st.ModTime())
	if old > refreshAfter || servers == 1 && old > refreshLone {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = c.renewNow(ctx) // the context is good without
	}
}

// renewNow gets a new SVID for a new key, with the present bundle and servers,
// and writes the context back.
func (c *fleetConn) renewNow(ctx context.Context) error {
	c.mu.Lock()
	if c.renewing {
		c.mu.Unlock()
		return nil
	}
	c.renewing, c.renewed = true, time.Now()
	before := c.file
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.renewing = false
		c.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		return err
	}
	resp, err := redoubtv1.NewFleetServiceClient(c).RenewIdentity(ctx, &redoubtv1.RenewIdentityRequest{Csr: csr})
	if err != nil {
		return err
	}
	chain, err := certificates(resp.GetCertificates())
	if err != nil {
		return fmt.Errorf("renew identity: %w", err)
	}
	svid, err := identity.NewSVID(key, chain)
	if err != nil {
		return fmt.Errorf("renew identity: %w", err)
	}
	if svid.ID != before.SVID.ID {
		return fmt.Errorf("renew identity: the server answered with one of %s", svid.ID)
	}
	authorities, err := certificates(resp.GetBundle())
	if err != nil {
		return fmt.Errorf("renew identity: trust bundle: %w", err)
	}
	next := identity.File{
		Addresses: before.Addresses, SVID: svid,
		Bundle: x509bundle.FromX509Authorities(before.Bundle.TrustDomain(), authorities),
	}
	_, mine, err := c.dial()
	if err != nil {
		return err
	}
	if servers := resp.GetServers(); len(servers) > 0 {
		// The server that answered stays first: it can be reached from here,
		// also where its address differs from the one that it announces.
		next.Addresses = append([]string{mine}, slices.DeleteFunc(slices.Clone(servers), func(s string) bool { return s == mine })...)
	}
	if err := identity.SaveFile(c.path, next); err != nil {
		return err
	}
	if err := c.source.SetBundle(next.Bundle); err != nil {
		return err
	}
	if err := c.source.Set(svid); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file, c.at = next, 0
	return nil
}

func certificates(ders [][]byte) (certs []*x509.Certificate, err error) {
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
