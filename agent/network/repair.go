package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// switchPin cannot be an instance: no id begins with a dot.
const switchPin = ".switch"

// settleSubnet decides which range the node uses and remembers it.
func (n *Network) settleSubnet() error {
	have, want := n.ledger.Subnet, n.cfg.Subnet
	routed, err := n.links.routed()
	if err != nil {
		return err
	}
	leased := 0
	for _, l := range n.ledger.Leases {
		if !l.None {
			leased++
		}
	}
	switch {
	case want.IsValid():
		if want != have && leased > 0 {
			return fmt.Errorf("%w subnet %s: %d instances hold addresses of %s; stop them first", ErrInvalid, want, leased, have)
		}
	case have.IsValid() && (leased > 0 || !overlapsAny(have, routed)):
		want = have
	default:
		if want, err = chooseSubnet(n.cfg.Node, routed); err != nil {
			return err
		}
	}
	if overlapsAny(want, routed) {
		n.log.Warn("the instances' subnet is also routed elsewhere by this host; instances cannot reach what is there", "subnet", want)
	}
	if want == have {
		return nil
	}
	return n.ledger.update(func(r *record) { r.Subnet, r.Last = want, netip.Addr{} })
}

// repair makes everything on the host as it must be and returns what it had to
// make or change. It is what Open does, and Run whenever somebody else changed
// something. The rules stand before the link that they guard is up.
func (n *Network) repair(ctx context.Context) (changed []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := ensurePinDir(n.pins()); err != nil {
		return nil, err
	}
	n.after("pin directory")
	made, err := n.links.enterSwitch(filepath.Join(n.pins(), switchPin))
	if err != nil {
		return nil, fmt.Errorf("switch: %w", err)
	}
	if made {
		changed = append(changed, "switch")
	}
	n.after("switch")
	if n.guard == nil || made {
		if n.guard, err = openGuard(n.links.space, n.names); err != nil {
			return changed, err
		}
	}
	if n.mtu, err = n.links.uplinkMTU(); err != nil {
		return changed, err
	}
	if err := n.recordSysctls(); err != nil {
		return changed, err
	}
	n.after("record")
	parts, err := n.links.ensureBridge(n.mtu)
	changed = append(changed, parts...)
	if err != nil {
		return changed, err
	}
	n.after("bridge")
	if err := n.survey(); err != nil {
		return changed, err
	}
	senders := map[string]netip.Addr{}
	for instance, a := range n.attached {
		if a.Address.IsValid() {
			senders[n.names.port(instance)] = a.Address
		}
	}
	if err := n.guard.ensure(senders); err != nil {
		return changed, err
	}
	replaced, err := n.nft.ensure(n.ledger.Subnet, n.published(), n.policies())
	if err != nil {
		return changed, err
	}
	if replaced {
		changed = append(changed, "rules")
	}
	if n.nft.most == 0 && !n.uncounted {
		n.uncounted = true
		n.log.Warn("this kernel counts no connections (nft_connlimit): one instance may fill the host's table of them")
	}
	n.after("rules")
	subnet := n.ledger.Subnet
	address := netip.PrefixFrom(gateway(subnet), subnet.Bits())
	parts, err = n.links.ensureHost(aliasOf(n.cfg.Node, n.ledger.Sysctls), address, n.host)
	changed = append(changed, parts...)
	if err != nil {
		return changed, err
	}
	for _, a := range n.attached {
		if a.Address.IsValid() {
			if err := n.links.setNeighbour(a.Address); err != nil {
				return changed, err
			}
		}
	}
	n.after("host link")
	on := false
	if err := n.host.do(func() (err error) {
		on, err = setSysctl(forwarding, "1")
		return err
	}); err != nil {
		return changed, err
	}
	if on {
		changed = append(changed, "forwarding")
	}
	if replaced {
		t := trespassers{subnet: subnet, policies: n.policies(), published: n.published()}
		if err := n.links.expel(t); err != nil {
			n.log.Debug("tracked connections are left", "err", err)
		}
	}
	return changed, n.refreshResolvers()
}

// Teardown removes all that the node has on the host, puts the recorded
// sysctls back, forgets the leases and closes the network.
func (n *Network) Teardown(ctx context.Context) error {
	n.mu.Lock()
	err := n.usable(ctx)
	if err == nil {
		err = n.teardown()
	}
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("tear down the network of node %s: %w", n.cfg.Node, err)
	}
	return n.Close()
}

// Remove is Teardown for a network that nobody has open, as after its agent was
// killed. It makes nothing, and succeeds if there is nothing. It must run in the
// namespaces that the agent had, or when its network namespace is gone.
func Remove(ctx context.Context, cfg Config) error {
	if _, err := os.Stat(cfg.Dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	n, err := prepare(cfg)
	if err != nil {
		return err
	}
	if pin := filepath.Join(n.pins(), switchPin); pinned(pin) {
		if _, err := n.links.enterSwitch(pin); err != nil {
			return errors.Join(err, n.Close())
		}
	}
	return errors.Join(n.Teardown(ctx), n.Close())
}

func (n *Network) teardown() error {
	var errs []error
	clear(n.attached)
	errs = append(errs, n.nft.remove())
	if n.links.inside != nil {
		ports, err := n.links.ports()
		errs = append(errs, err)
		// The uplink takes the host's link with it, wherever that is.
		for _, port := range append(ports, n.names.uplink) {
			errs = append(errs, remove(n.links.inside, port))
		}
		n.links.leaveSwitch()
	}
	errs = append(errs, n.links.removeHost())
	if n.ledger.Subnet.IsValid() {
		if err := n.links.forget(n.ledger.Subnet); err != nil {
			n.log.Debug("tracked connections are left", "err", err)
		}
	}
	errs = append(errs, removePinDir(n.pins()), n.restoreSysctls())
	if err := errors.Join(errs...); err != nil {
		return err // the state says what is left to do
	}
	return errors.Join(os.RemoveAll(n.files()), removeFile(n.ledger.path), removeFile(n.ledger.path+".new"))
}
