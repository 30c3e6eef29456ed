package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Attach makes a fresh namespace for the instance, with the address that it
// had or a free one, and publishes its ports. What the instance had before is
// taken down first: a runtime may have changed a namespace that it was given,
// so none is ever given out twice. Nothing changes if the spec is not valid or
// a port is held by somebody else.
func (n *Network) Attach(ctx context.Context, spec Spec) (Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fail := func(err error) (Attachment, error) {
		return Attachment{}, fmt.Errorf("attach instance %s: %w", spec.Instance, err)
	}
	if err := n.usable(ctx); err != nil {
		return fail(err)
	}
	spec, err := spec.normal()
	if err != nil {
		return fail(err)
	}
	if err := n.checkPorts(spec); err != nil {
		return fail(err)
	}
	before, had := n.ledger.Leases[spec.Instance]
	now, err := n.ledger.reserve(spec)
	if err != nil {
		return fail(err)
	}
	n.after("reserve")
	// Whatever is there, of this lease or of none, must go.
	if err := n.dismantle(spec.Instance, before); err != nil {
		return fail(err)
	}
	a, err := n.assemble(ctx, spec.Instance, now)
	if err != nil {
		err = errors.Join(err, n.dismantle(spec.Instance, now))
		if !had {
			err = errors.Join(err, n.ledger.release(spec.Instance))
		}
		return fail(err)
	}
	n.attached[spec.Instance] = a
	n.log.Info("attached", "instance", spec.Instance, "address", now.Address, "ports", len(now.Ports))
	return a, nil
}

// assemble makes all of an attachment that is not durable. Its last step, the
// hosts file, marks it complete.
func (n *Network) assemble(ctx context.Context, instance string, l lease) (Attachment, error) {
	a := n.attachment(instance, l)
	space, err := createNamespace(a.Netns, func() error {
		return errors.Join(setPresent(instanceSettings), loopbackUp())
	})
	if err != nil {
		return a, err
	}
	defer space.fd.Close()
	n.after("pin")
	if err := ctx.Err(); err != nil {
		return a, err
	}
	if !l.None {
		if err := n.guard.admit(n.names.port(instance), l.Address); err != nil {
			return a, err
		}
		n.after("admit")
		inside := netip.PrefixFrom(l.Address, n.ledger.Subnet.Bits())
		if err := n.links.connect(instance, space, inside, a.Gateway, n.mtu); err != nil {
			return a, err
		}
		n.after("connect")
		if err := n.nft.publish(l.Address, l.Ports); err != nil {
			// A leftover of a crash may be in the way: make the whole table anew.
			published := n.published()
			published[l.Address] = l.Ports
			if _, again := n.nft.ensure(n.ledger.Subnet, published, n.policies()); again != nil {
				return a, errors.Join(err, again)
			}
		}
		n.after("publish")
		policies := n.policies()
		policies[l.Address] = l.Policy
		if err := n.nft.apply(l.Address, policies); err != nil {
			published := n.published()
			published[l.Address] = l.Ports
			if _, again := n.nft.ensure(n.ledger.Subnet, published, policies); again != nil {
				return a, errors.Join(err, again)
			}
		}
		n.after("apply")
		if hasUDP(l.Ports) {
			// A flow that began before the port was published would go on
			// past the instance for as long as it lasts.
			if err := n.links.forgetPorts(l.Ports); err != nil {
				n.log.Debug("tracked connections are left", "instance", instance, "err", err)
			}
		}
	}
	if err := n.writeFiles(instance, a, l); err != nil {
		return a, err
	}
	n.after("files")
	return a, nil
}

// dismantle removes all of an attachment but the lease. It goes on after an
// error, so that as little as possible is left.
func (n *Network) dismantle(instance string, l lease) error {
	delete(n.attached, instance)
	var errs []error
	step := func(name string, err error) {
		if err != nil {
			errs = append(errs, err)
		}
		n.after(name)
	}
	// Without the hosts file the attachment is no longer complete.
	step("unmark", removeFile(n.attachment(instance, l).Hosts))
	if l.Address.IsValid() {
		step("withdraw", n.nft.withdraw(l.Address, l.Ports))
	}
	step("disconnect", n.links.disconnect(instance, l.Address))
	if l.Address.IsValid() {
		// Only now: until its port is gone, its limits bind it.
		step("lift", n.nft.lift(l.Address, l.Policy))
		step("dismiss", n.guard.dismiss(n.names.port(instance), l.Address))
		if err := n.links.forget(netip.PrefixFrom(l.Address, 32)); err != nil {
			n.log.Debug("tracked connections are left", "instance", instance, "err", err)
		}
	}
	step("unpin", unpin(n.pin(instance)))
	step("unfile", os.RemoveAll(filepath.Join(n.files(), instance)))
	return errors.Join(errs...)
}

// Detach takes the instance off the network and gives its address and ports
// back. It does nothing for an instance that is not there.
func (n *Network) Detach(ctx context.Context, instance string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.usable(ctx); err != nil {
		return fmt.Errorf("detach instance %s: %w", instance, err)
	}
	return n.detach(instance)
}

func (n *Network) detach(instance string) error {
	if err := validID("instance id", instance); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	l, ok := n.ledger.Leases[instance]
	if !ok {
		return nil
	}
	// The lease goes last: until then a crash leaves something that names what
	// is left.
	if err := n.dismantle(instance, l); err != nil {
		return fmt.Errorf("detach instance %s: %w", instance, err)
	}
	if err := n.ledger.release(instance); err != nil {
		return fmt.Errorf("detach instance %s: %w", instance, err)
	}
	n.after("release")
	n.log.Info("detached", "instance", instance, "address", l.Address)
	return nil
}

// Sweep detaches every instance that keep does not want and removes what a
// crash left behind. It touches only what is this node's.
func (n *Network) Sweep(ctx context.Context, keep func(instance string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.usable(ctx); err != nil {
		return fmt.Errorf("sweep the network: %w", err)
	}
	var errs []error
	for instance := range n.ledger.Leases {
		if !keep(instance) {
			errs = append(errs, n.detach(instance))
		}
	}
	errs = append(errs, n.sweepOrphans())
	_, err := n.repair(ctx) // drops what the tables hold of them
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("sweep the network: %w", err)
	}
	return nil
}

// sweepOrphans removes what no lease accounts for.
func (n *Network) sweepOrphans() error {
	var errs []error
	ports := map[string]bool{}
	for instance := range n.ledger.Leases {
		ports[n.names.port(instance)] = true
	}
	there, err := n.links.ports()
	errs = append(errs, err)
	for _, port := range there {
		if !ports[port] {
			errs = append(errs, remove(n.links.inside, port))
		}
	}
	for dir, drop := range map[string]func(string) error{n.pins(): unpin, n.files(): os.RemoveAll} {
		entries, err := os.ReadDir(dir)
		errs = append(errs, err)
		for _, e := range entries {
			if _, leased := n.ledger.Leases[e.Name()]; !leased && e.Name() != switchPin {
				errs = append(errs, drop(filepath.Join(dir, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// survey finds the instances whose attachment is complete. One that lost its
// port or its namespace is not: it must be attached, and so started, again.
func (n *Network) survey() error {
	there, err := n.links.ports()
	if err != nil {
		return err
	}
	ports := map[string]bool{}
	for _, p := range there {
		ports[p] = true
	}
	clear(n.attached)
	for instance, l := range n.ledger.Leases {
		a := n.attachment(instance, l)
		if !pinned(a.Netns) || !l.None && !ports[n.names.port(instance)] {
			continue
		}
		if _, err := os.Stat(a.Hosts); err == nil {
			n.attached[instance] = a
		}
	}
	return nil
}

// published are the ports of the attached instances by address.
func (n *Network) published() map[netip.Addr][]Port {
	out := map[netip.Addr][]Port{}
	for instance, a := range n.attached {
		if a.Address.IsValid() {
			out[a.Address] = n.ledger.Leases[instance].Ports
		}
	}
	return out
}

func hasUDP(ports []Port) bool {
	for _, p := range ports {
		if p.Protocol == "udp" {
			return true
		}
	}
	return false
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
