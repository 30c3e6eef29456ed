package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
)

var td = spiffeid.RequireTrustDomainFromString("fleet.test")

func authority(t testing.TB) (*ca.Authority, *x509bundle.Bundle) {
	t.Helper()
	a, err := ca.Create(t.TempDir(), td)
	if err != nil {
		t.Fatal(err)
	}
	b := x509bundle.FromX509Authorities(td, []*x509.Certificate{a.Certificate()})
	if err := a.Activate(b); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func svid(t testing.TB, a *ca.Authority, key crypto.Signer, kind identity.Kind, name string, ttl time.Duration) *x509svid.SVID {
	t.Helper()
	id, err := identity.New(td, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignSVID(csr, id, ttl)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func token(pins ...string) attest.Token {
	if len(pins) == 0 {
		pins = []string{"sha256:" + strings.Repeat("ab", 32)}
	}
	return attest.Token{
		ID: attest.NewTokenID(), Secret: attest.NewSecret(), TrustDomain: td, Pins: pins, Role: identity.KindNode,
		Name: "n1", Site: "oslo", Expires: time.Now().Add(time.Hour).Truncate(time.Second).UTC(), Addresses: []string{"10.0.0.1:7443"},
	}
}

func encode(t testing.TB, tok attest.Token) string {
	t.Helper()
	text, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTokenReadsBack(t *testing.T) {
	tok := token("sha256:"+strings.Repeat("ab", 32), "sha256:"+strings.Repeat("01", 32), "sha256:"+strings.Repeat("ff", 32))
	text := encode(t, tok)
	for name, s := range map[string]string{"as is": text, "wrapped by a terminal": "  " + text[:60] + "\r\n" + text[60:] + "\n"} {
		got, err := attest.ParseToken(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(got.Secret.Reveal(), tok.Secret.Reveal()) {
			t.Fatalf("%s: another secret", name)
		}
		got.Secret = tok.Secret
		if !reflect.DeepEqual(got, tok) {
			t.Fatalf("%s: reads back as %+v, was %+v", name, got, tok)
		}
	}
	t.Logf("a token with three pins has %d characters", len(text))
}

func TestTokenErrorsNameTheRemedy(t *testing.T) {
	text := encode(t, token())
	swapped := []byte(text)
	swapped[40], swapped[41] = 'A', 'B'
	for _, c := range []struct {
		name, text, want string
		is               error
	}{
		{"empty", " \n", "text is empty", attest.ErrNotToken},
		{"something else", "hunter2", "does not begin with rdt1_", attest.ErrNotToken},
		{"a later version", "rdt2_" + text[5:], "another version", attest.ErrNotToken},
		{"only the beginning of the prefix", "rdt1", "cut off", attest.ErrDamagedToken},
		{"only the prefix", "rdt1_", "cut off", attest.ErrDamagedToken},
		{"one character short", text[:len(text)-1], "cut off", attest.ErrDamagedToken},
		{"half", text[:len(text)/2], "cut off", attest.ErrDamagedToken},
		{"altered", string(swapped), "altered", attest.ErrDamagedToken},
		{"a quote in it", text[:30] + "\"" + text[31:], "character 31 cannot be in a token", attest.ErrDamagedToken},
		{"appended", text + "AAAA", "appended", attest.ErrDamagedToken},
		{"huge", strings.Repeat("A", 1<<20), "too long", attest.ErrNotToken},
	} {
		_, err := attest.ParseToken(c.text)
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && len(c.text) > 20 && strings.Contains(err.Error(), c.text[10:20]) {
			t.Errorf("%s: the error quotes the token", c.name)
		}
	}
}

func TestTokenIsCheckedWhenMade(t *testing.T) {
	for name, spoil := range map[string]func(*attest.Token){
		"no secret":    func(t *attest.Token) { t.Secret = attest.Secret{} },
		"no pins":      func(t *attest.Token) { t.Pins = nil },
		"short pin":    func(t *attest.Token) { t.Pins = []string{"sha256:ab"} },
		"user":         func(t *attest.Token) { t.Role = identity.KindUser },
		"no expiry":    func(t *attest.Token) { t.Expires = time.Time{} },
		"bad name":     func(t *attest.Token) { t.Name = "A" },
		"bad site":     func(t *attest.Token) { t.Site = "a/b" },
		"no domain":    func(t *attest.Token) { t.TrustDomain = spiffeid.TrustDomain{} },
		"far too long": func(t *attest.Token) { t.Addresses = []string{strings.Repeat("a", 70_000)} },
	} {
		tok := token()
		spoil(&tok)
		if text, err := tok.Encode(); err == nil {
			t.Errorf("%s: made %s", name, text)
		}
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	tok := token()
	s := tok.Secret
	raw := s.Reveal()
	type nested struct{ inner attest.Secret } // fmt may not call methods of inner
	var out bytes.Buffer
	for _, v := range []any{s, &s, tok, &tok, nested{s}, &nested{s}, []attest.Secret{s}, map[string]attest.Secret{"a": s}, attest.Presented{Secret: s}, tok.Store()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b", "%c", "%U"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(j)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
	}
	fmt.Fprintln(&out, fmt.Errorf("wrapped: %v", s), s.String(), s.GoString())
	printed := out.String()
	decimal := strings.Trim(fmt.Sprint(raw[:6]), "[]")
	for name, form := range map[string]string{
		"hex": hex.EncodeToString(raw[:6]), "HEX": strings.ToUpper(hex.EncodeToString(raw[:6])), "base64": base64.StdEncoding.EncodeToString(raw[:6]),
		"base64url": base64.RawURLEncoding.EncodeToString(raw[:6]), "decimal": decimal, "decimal list": strings.ReplaceAll(decimal, " ", ","),
		"Go syntax": strings.ReplaceAll(decimal, " ", ", "), "raw": string(raw[:6]), "hash input": fmt.Sprintf("%#v", raw)[7:40],
	} {
		if strings.Contains(printed, form) {
			t.Errorf("the secret is printed as %s", name)
		}
	}
	if !strings.Contains(printed, "[secret]") {
		t.Error("nothing was printed at all")
	}
	// The check itself can see: a plain array in its place would be found.
	if plain := fmt.Sprintf("%v", struct{ b [32]byte }{[32]byte(raw)}); !strings.Contains(plain, decimal) {
		t.Fatal("the check is blind")
	}
}

func TestEnrolmentRules(t *testing.T) {
	now := time.Now()
	keyOf := func() string {
		h, err := attest.KeyHash(newKey(t).Public())
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	one, two := keyOf(), keyOf()
	tok := token()
	tok.Name = ""
	base := tok.Store()
	good := attest.Presented{TokenID: tok.ID, Secret: tok.Secret, KeyHash: one, Role: identity.KindNode, Name: "n1"}
	if strings.Contains(fmt.Sprintf("%#v", base), hex.EncodeToString(tok.Secret.Reveal())) || base.SecretHash != attest.HashSecret(tok.Secret) {
		t.Fatal("what is stored is not the hash")
	}
	bound, err := base.Bind(one, "n1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		stored attest.Stored
		change func(*attest.Presented)
		at     time.Time
		want   error
	}{
		{"first", base, nil, now, nil},
		{"the same key again", bound, nil, now, nil},
		{"the same key again at the last moment", bound, nil, tok.Expires.Add(-time.Nanosecond), nil},
		{"the same key after expiry", bound, nil, tok.Expires, attest.ErrTokenExpired},
		{"another key", bound, func(p *attest.Presented) { p.KeyHash = two }, now, attest.ErrOtherKey},
		{"the same key under another name", bound, func(p *attest.Presented) { p.Name = "n2" }, now, attest.ErrOtherName},
		{"wrong secret", base, func(p *attest.Presented) { p.Secret = attest.NewSecret() }, now, attest.ErrUnknownToken},
		{"no secret", base, func(p *attest.Presented) { p.Secret = attest.Secret{} }, now, attest.ErrUnknownToken},
		{"wrong secret after expiry tells nothing", base, func(p *attest.Presented) { p.Secret = attest.NewSecret() }, tok.Expires, attest.ErrUnknownToken},
		{"another token", base, func(p *attest.Presented) { p.TokenID = "other" }, now, attest.ErrUnknownToken},
		{"another role", base, func(p *attest.Presented) { p.Role = identity.KindServer }, now, attest.ErrRole},
		{"named for another", func() attest.Stored { s := base; s.Name = "n9"; return s }(), nil, now, attest.ErrOtherName},
		{"revoked", func() attest.Stored { s := bound; s.Revoked = true; return s }(), nil, now, attest.ErrRevoked},
		{"bad name", base, func(p *attest.Presented) { p.Name = "../x" }, now, identity.ErrInvalidID},
	} {
		p := good
		if c.change != nil {
			c.change(&p)
		}
		err := attest.Verify(c.stored, p, c.at)
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if again, err := bound.Bind(one, "n1"); err != nil || again != bound {
		t.Errorf("binding again changes it: %+v, %v", again, err)
	}
	if left, err := bound.Bind(two, "n1"); !errors.Is(err, attest.ErrOtherKey) || left != bound {
		t.Errorf("another key: %+v, %v", left, err)
	}
	if _, err := base.Bind("", "n1"); err == nil {
		t.Error("bound to no key")
	}
	// No secret matches no hash, also not an empty stored one.
	if err := attest.Verify(attest.Stored{}, attest.Presented{}, now); !errors.Is(err, attest.ErrUnknownToken) {
		t.Errorf("nothing against nothing: %v", err)
	}
}

// firstContact serves src as the enrolment service does and calls it with the
// given credentials.
func firstContact(t *testing.T, src identity.Source, creds credentials.TransportCredentials) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(attest.ServerCredentials(src)))
	healthpb.RegisterHealthServer(s, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func TestFirstContactTrustsOnlyPinnedServers(t *testing.T) {
	a, trust := authority(t)
	rogue, rogueTrust := authority(t)
	server := identity.NewMemorySource(svid(t, a, newKey(t), identity.KindServer, "s1", time.Hour), trust)
	rogueServer := identity.NewMemorySource(svid(t, rogue, newKey(t), identity.KindServer, "s1", time.Hour), rogueTrust)
	insider := identity.NewMemorySource(svid(t, a, newKey(t), identity.KindNode, "n9", time.Hour), trust)
	for _, c := range []struct {
		name   string
		src    identity.Source
		pins   []string
		domain spiffeid.TrustDomain
		want   string
	}{
		{"pinned", server, []string{a.Pin()}, td, ""},
		{"one of several pins", server, []string{rogue.Pin(), a.Pin()}, td, ""},
		{"another fleet", rogueServer, []string{a.Pin()}, td, "not one of the fleet"},
		{"a node that poses as a server", insider, []string{a.Pin()}, td, "is a node"},
		{"no pins", server, nil, td, "not one of the fleet"},
		{"the leaf pinned in place of the authority", server, []string{leafPin(t, server)}, td, "not one of the fleet"},
		{"another trust domain", server, []string{a.Pin()}, spiffeid.RequireTrustDomainFromString("elsewhere.test"), "fleet.test"},
	} {
		err := firstContact(t, c.src, attest.PinnedCredentials(c.domain, c.pins))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	// A rogue that sends the real authority's certificate along, which is
	// public, still has no SVID that it signed.
	forged := svid(t, rogue, newKey(t), identity.KindServer, "s1", time.Hour)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{
		Certificate: [][]byte{forged.Certificates[0].Raw, a.Certificate().Raw}, PrivateKey: forged.PrivateKey,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { c.(*tls.Conn).Handshake(); c.Close() }()
		}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), attest.PinnedTLS(td, []string{a.Pin()}))
	if err == nil {
		conn.Close()
		t.Fatal("a rogue with the fleet's certificate was trusted")
	}

	if err := firstContact(t, server, attest.BundleCredentials(trust, td)); err != nil {
		t.Errorf("by bundle: %v", err)
	}
	if err := firstContact(t, rogueServer, attest.BundleCredentials(trust, td)); err == nil {
		t.Error("by bundle, a rogue was trusted")
	}
}

func leafPin(t *testing.T, src identity.Source) string {
	s, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return identity.CertificatePin(s.Certificates[0])
}

func TestRenewalAfterExpiry(t *testing.T) {
	a, trust := authority(t)
	rogue, _ := authority(t)
	key, otherKey := newKey(t), newKey(t)
	old := svid(t, a, key, identity.KindNode, "n1", time.Minute)
	stolen := svid(t, a, otherKey, identity.KindNode, "n1", time.Minute) // another key, rightly signed
	self := svid(t, rogue, key, identity.KindNode, "n1", time.Minute)
	id, _ := identity.NodeID(td, "n1")
	otherID, _ := identity.NodeID(td, "n2")
	hash, _ := attest.KeyHash(key.Public())
	who := attest.Enrolled{ID: id, KeyHash: hash}
	ch := attest.NewChallenger()
	window := attest.Within(24 * time.Hour)
	now := old.Certificates[0].NotAfter.Add(time.Hour)

	answer := func(s *x509svid.SVID, challenge []byte) attest.Renewal {
		t.Helper()
		r, err := attest.NewRenewal(s, challenge)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	good := answer(old, ch.Issue(id, now))
	if got, err := attest.RenewingID(good); err != nil || got != id {
		t.Fatalf("renewal is from %v, %v", got, err)
	}
	other := answer(old, ch.Issue(id, now))
	swapCSR := good
	csr, err := attest.NewCSR(otherKey)
	if err != nil {
		t.Fatal(err)
	}
	swapCSR.CSR = csr
	swapSig := good
	swapSig.Signature = other.Signature
	oldCSR := good
	oldCSR.CSR = other.CSR // by the right key, but not what was signed
	for _, c := range []struct {
		name string
		r    attest.Renewal
		who  attest.Enrolled
		at   time.Time
		want string
	}{
		{"good", good, who, now, ""},
		{"repeated over a bad link", good, who, now.Add(30 * time.Second), ""},
		{"challenge too old", good, who, now.Add(time.Minute), "ask for a new one"},
		{"challenge for another", answer(old, ch.Issue(otherID, now)), who, now, "ask for a new one"},
		{"challenge of another server", answer(old, attest.NewChallenger().Issue(id, now)), who, now, "ask for a new one"},
		{"no challenge", answer(old, nil), who, now, "ask for a new one"},
		{"the key of another", answer(stolen, ch.Issue(id, now)), who, now, "has not enrolled"},
		{"a certificate of another fleet", answer(self, ch.Issue(id, now)), who, now, "unknown authority"},
		{"a request for another key", swapCSR, who, now, "has not enrolled"},
		{"another signature", swapSig, who, now, "not signed by the enrolled key"},
		{"another request", oldCSR, who, now, "not signed by the enrolled key"},
		{"for another node", good, attest.Enrolled{ID: otherID, KeyHash: hash}, now, "the expired SVID is of"},
		{"revoked", good, attest.Enrolled{ID: id, KeyHash: hash, Revoked: true}, now, "revoked"},
		{"no chain", attest.Renewal{CSR: good.CSR, Challenge: good.Challenge, Signature: good.Signature}, who, now, "0 certificates"},
	} {
		err := attest.VerifyRenewal(c.r, c.who, trust, ch, window, c.at)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	late := old.Certificates[0].NotAfter.Add(25 * time.Hour)
	if err := attest.VerifyRenewal(answer(old, ch.Issue(id, late)), who, trust, ch, window, late); !errors.Is(err, attest.ErrWindow) {
		t.Errorf("after the window: %v", err)
	}
	if err := attest.VerifyRenewal(good, who, trust, ch, 0, now); !errors.Is(err, attest.ErrWindow) {
		t.Errorf("with no window: %v", err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edSVID := svid(t, a, ed, identity.KindNode, "n1", time.Minute)
	edHash, _ := attest.KeyHash(ed.Public())
	if err := attest.VerifyRenewal(answer(edSVID, ch.Issue(id, now)), attest.Enrolled{ID: id, KeyHash: edHash}, trust, ch, window, now); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
}

func TestCSRKeyProvesPossession(t *testing.T) {
	key := newKey(t)
	csr, err := attest.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := attest.KeyHash(key.Public())
	if got, err := attest.CSRKey(csr); err != nil || got != want {
		t.Fatalf("got %s, %v", got, err)
	}
	csr[len(csr)-1] ^= 1
	if _, err := attest.CSRKey(csr); err == nil {
		t.Fatal("a forged request passed")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(encode(f, token()))
	for _, s := range []string{"", "rdt1_", "rdt1_AAAA", "rdt2_x", "rdt1_AAAAAAAA", "rdt1_AAJ7fQ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := attest.ParseToken(s)
		if err != nil {
			if !errors.Is(err, attest.ErrNotToken) && !errors.Is(err, attest.ErrDamagedToken) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		text, err := tok.Encode()
		if err != nil {
			t.Fatalf("parsed but cannot be encoded: %v", err)
		}
		again, err := attest.ParseToken(text)
		if err != nil || !bytes.Equal(again.Secret.Reveal(), tok.Secret.Reveal()) {
			t.Fatalf("does not read back: %v", err)
		}
		again.Secret = tok.Secret
		if !reflect.DeepEqual(again, tok) {
			t.Fatalf("%+v reads back as %+v", tok, again)
		}
	})
}
