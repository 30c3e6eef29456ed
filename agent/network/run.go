package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// pollEvery bounds how long damage goes unseen that no event tells of: in
	// the switch, in sysctls and in the host's resolvers.
	pollEvery = 10 * time.Second
	// settleFor is the least time from one look to the next: the first change
	// is looked at without delay, since rules may be gone, and a busy host's
	// rules are not read all the time.
	settleFor = 200 * time.Millisecond
)

// Run keeps the network as it must be until ctx ends: it listens for changes of
// rules, links and addresses on the host, looks at all of it now and then, puts
// right what somebody else changed, and serves names where instances need it.
// It returns nil when ctx ends and has then joined all that it started.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	changes := make(chan struct{}, 1)
	for _, w := range []struct {
		what   string
		family int
		groups uint32
	}{
		{"rules", unix.NETLINK_NETFILTER, 1 << (unix.NFNLGRP_NFTABLES - 1)},
		{"links", unix.NETLINK_ROUTE, unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR},
	} {
		conn, err := netlink.Dial(w.family, &netlink.Config{Groups: w.groups, NetNS: int(n.host.fd.Fd())})
		if err != nil {
			n.log.Warn("changes on the host are seen by polling only", "of", w.what, "err", err)
			continue
		}
		g.Go(func() error { return listen(ctx, conn, changes) })
		g.Go(func() error {
			<-ctx.Done()
			conn.Close() // ends listen
			return nil
		})
	}
	f := &forwarder{network: n, log: n.log}
	g.Go(func() error {
		defer f.stop()
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		last := ""
		for {
			failed := n.converge(ctx)
			if failed == nil {
				failed = f.follow(ctx)
			}
			// The same failure again is no news.
			if failed != nil && ctx.Err() == nil && failed.Error() != last {
				n.log.Error("the network is not as it must be", "err", failed)
			}
			last = fmt.Sprint(failed)
			n.reportRefusals()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settleFor):
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			case <-changes:
			}
		}
	})
	return g.Wait()
}

// converge repairs and logs what had to be repaired.
func (n *Network) converge(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.usable(ctx); err != nil {
		return err
	}
	changed, err := n.repair(ctx)
	n.lookAround()
	if len(changed) > 0 {
		n.log.Warn("somebody else changed this node's network; put right", "what", changed)
	}
	return err
}

// listen turns messages into a signal, until the connection is closed.
func listen(ctx context.Context, conn *netlink.Conn, changes chan<- struct{}) error {
	for {
		_, err := conn.Receive()
		if ctx.Err() != nil {
			return nil
		}
		// An overrun means that something was missed, which is a change too.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("listen for changes on the host: %w", err)
		}
		select {
		case changes <- struct{}{}:
		default:
		}
	}
}
