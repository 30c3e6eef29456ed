package consensus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// mint makes a self-signed certificate that every test server trusts.
func mint(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// mutual is real TLS whose connections live for life and drain at half of it.
func mutual(cert tls.Certificate, pool *x509.CertPool, life time.Duration, drained *atomic.Int64) Security {
	type ending struct {
		*tls.Conn
		at time.Time
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "server", MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	shake := func(ctx context.Context, raw net.Conn, c *tls.Conn) (net.Conn, error) {
		if err := c.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		if life > 0 {
			time.AfterFunc(life, func() { raw.Close() })
		}
		return ending{c, time.Now().Add(life / 2)}, nil
	}
	return Security{
		Server: func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			return shake(ctx, raw, tls.Server(raw, cfg))
		},
		Client: func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			return shake(ctx, raw, tls.Client(raw, cfg))
		},
		DrainAt: func(c net.Conn) time.Time {
			if life == 0 {
				return time.Time{}
			}
			drained.Add(1)
			return c.(ending).at
		},
	}
}

func tlsFleet(t *testing.T, sec Security) (nodes []*member) {
	t.Helper()
	for i, id := range []string{"a", "b", "c"} {
		n, store, err := open(t, t.TempDir(), "c1", id, sec)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := n.Bootstrap(); err != nil {
				t.Fatal(err)
			}
		}
		stop := run(t, n)
		m := &member{Node: n, id: id, store: store, stop: stop}
		nodes = append(nodes, m)
		if i == 0 {
			eventually(t, "the first leads", func() bool { _, ok := n.LeaderTerm(); return ok })
			mustPropose(t, m, initCommand())
			continue
		}
		at := n.cfg.Address
		if _, err := nodes[0].AddNonvoter(within(t, 10*time.Second), id, at); err != nil {
			t.Fatal(err)
		}
		if _, err := nodes[0].AddVoter(within(t, 10*time.Second), id, at); err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}

func TestConnectionsEndWithoutAFailedProposal(t *testing.T) {
	if testing.Short() {
		t.Skip("takes six seconds")
	}
	cert, pool := mint(t)
	var dialled atomic.Int64
	nodes := tlsFleet(t, mutual(cert, pool, 2*time.Second, &dialled))
	lead, term := nodes[0], nodes[0].Term()
	before := dialled.Load()
	done := 0
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); done++ {
		mustPropose(t, lead, role("", user(done)))
	}
	if done < 50 {
		t.Fatalf("only %d proposals in 6 s: too few to show anything", done)
	}
	if again := dialled.Load() - before; again < 4 {
		t.Fatalf("%d connections were made: none was renewed, the test is void", again)
	}
	if now := lead.Term(); now != term {
		t.Fatalf("renewing connections cost an election: term %d, then %d", term, now)
	}
	eventually(t, "all have all", func() bool { return has(nodes[1], user(done-1)) && has(nodes[2], user(done-1)) })
	t.Logf("%d proposals over mutual TLS and three synced disks, %d connections", done, dialled.Load()-before)
}

func TestAStrangerIsNotHeard(t *testing.T) {
	cert, pool := mint(t)
	foreign, _ := mint(t)
	var n atomic.Int64
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	layer := NewLayer(ln, mutual(cert, pool, 0, &n), nil)
	defer layer.Close()
	read := func() <-chan error {
		got := make(chan error, 1)
		go func() {
			c, err := layer.Accept()
			if err == nil {
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			got <- err
		}()
		return got
	}
	for name, sec := range map[string]Security{"foreign": mutual(foreign, pool, 0, &n), "plaintext": plain} {
		got := read()
		raw, err := (&net.Dialer{}).DialContext(within(t, time.Second), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if conn, err := sec.Client(within(t, 2*time.Second), raw); err == nil {
			conn.Write([]byte("hello, I am a server"))
		}
		select {
		case err := <-got:
			if err == nil {
				t.Errorf("%s: was heard", name)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: no verdict", name)
		}
		raw.Close()
	}
	got := read()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := mutual(cert, pool, 0, &n).Client(within(t, 2*time.Second), raw)
	if err != nil {
		t.Fatalf("a server is refused: %v", err)
	}
	conn.Write([]byte("x"))
	if err := <-got; err != nil {
		t.Fatalf("a server is not heard: %v", err)
	}
	conn.Close()
}
