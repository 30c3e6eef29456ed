package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/memberlist"

	"redoubt.dev/redoubt/isolation"
)

// delegate is what memberlist calls; none of it blocks.
type delegate struct{ p *Pool }

func (d delegate) NodeMeta(limit int) []byte {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if len(d.p.meta) > limit {
		return nil // Encode has made sure of it
	}
	return bytes.Clone(d.p.meta)
}

func (d delegate) NotifyMsg([]byte)                {}
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte          { return nil }
func (d delegate) MergeRemoteState([]byte, bool)   {}

// NotifyAlive keeps out whoever speaks of itself under another's name.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == string(d.p.cfg.Node) {
		return nil // it is this node itself, or a conflict, which is told as one
	}
	digest, err := DecodeDigest(n.Meta)
	if err == nil && string(digest.Node) != n.Name {
		err = fmt.Errorf("its digest is of %s", digest.Node)
	}
	if err == nil {
		return d.learn(n.Name)
	}
	err = fmt.Errorf("gossip of %s from %s is refused: %w", n.Name, n.Address(), err)
	d.p.mu.Lock()
	told := d.p.flagged[n.Name]
	if len(d.p.flagged) >= maxMembers {
		clear(d.p.flagged)
	}
	d.p.flagged[n.Name] = true
	d.p.mu.Unlock()
	if !told {
		d.p.cfg.Log.Warn("gossip refused", "node", n.Name, "address", n.Address(), "err", err)
		if d.p.cfg.OnConflict != nil {
			d.p.cfg.OnConflict(Conflict{Node: isolation.NodeID(n.Name), Other: n.Address()})
		}
	}
	return err
}

// learn bounds the names that the pool knows. Any member may invent as many as
// it likes.
func (d delegate) learn(name string) error {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if _, here := d.p.alive[name]; here {
		return nil
	}
	if _, known := d.p.heard[name]; known && len(d.p.alive) < maxMembers {
		return nil
	}
	if !d.p.newcomers.admit(len(d.p.alive), time.Now()) {
		return fmt.Errorf("gossip of %s is not taken in: the pool has %d members, or too many new ones at once", name, len(d.p.alive))
	}
	return nil
}

func (d delegate) NotifyJoin(n *memberlist.Node) { d.heard(n, Alive) }

func (d delegate) NotifyUpdate(n *memberlist.Node) { d.heard(n, Changed) }

// NotifyLeave is called for the dead and for those who left; memberlist does
// not say which (Node.State is not set), the digest does.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.heard(n, Suspect) }

func (d delegate) heard(n *memberlist.Node, k Kind) {
	d.p.mu.Lock()
	if k == Suspect {
		delete(d.p.alive, n.Name)
	} else {
		d.p.alive[n.Name] = n.Address()
	}
	d.p.mu.Unlock()
	if n.Name == string(d.p.cfg.Node) {
		return
	}
	digest, err := DecodeDigest(n.Meta)
	if err != nil {
		return // NotifyAlive has refused it
	}
	d.p.mu.Lock()
	last, known := d.p.heard[n.Name]
	if !known && len(d.p.heard) >= 2*maxMembers {
		clear(d.p.heard)
	}
	d.p.heard[n.Name] = digest.Generation
	d.p.mu.Unlock()
	if digest.Leaving {
		return // it ends in good order; its session says what else there is
	}
	h := Hint{Kind: k, Node: isolation.NodeID(n.Name), Digest: digest}
	if k != Changed {
		d.p.cfg.OnHint(h)
	}
	if k != Suspect && (!known || last != digest.Generation) {
		h.Kind = Changed
		d.p.cfg.OnHint(h)
	}
}

func (d delegate) NotifyConflict(present, other *memberlist.Node) {
	d.p.cfg.Log.Warn("two hosts gossip under one name", "node", present.Name, "present", present.Address(), "other", other.Address())
	if d.p.cfg.OnConflict != nil {
		d.p.cfg.OnConflict(Conflict{Node: isolation.NodeID(present.Name), Present: present.Address(), Other: other.Address()})
	}
}

// logWriter takes memberlist's lines. What is wrong there is a hint gone amiss
// and not the operator's business: debug.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Log(context.Background(), slog.LevelDebug, "memberlist", "line", string(bytes.TrimSpace(b)))
	return len(b), nil
}
