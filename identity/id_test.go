package identity_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"redoubt.dev/redoubt/identity"
)

func TestParseTakesTheFourForms(t *testing.T) {
	long := strings.Repeat("a", identity.MaxName)
	for _, c := range []struct {
		text      string
		kind      identity.Kind
		ns, name  string
		wantError string
	}{
		{text: "spiffe://fleet.test/server/s1", kind: identity.KindServer, name: "s1"},
		{text: "spiffe://fleet.test/node/edge-1", kind: identity.KindNode, name: "edge-1"},
		{text: "spiffe://fleet.test/user/ada", kind: identity.KindUser, name: "ada"},
		{text: "spiffe://fleet.test/ns/default/workload/web", kind: identity.KindWorkload, ns: "default", name: "web"},
		{text: "spiffe://fleet.test/node/" + long, kind: identity.KindNode, name: long},
		{text: "spiffe://fleet.test/node/" + long + "a", wantError: "64 characters"},
		{text: "spiffe://fleet.test/node/-a", wantError: "begin or end"},
		{text: "spiffe://fleet.test/node/a-", wantError: "begin or end"},
		{text: "spiffe://fleet.test/node/A", wantError: "only a-z"},
		{text: "spiffe://fleet.test/node/a.b", wantError: "only a-z"},
		{text: "spiffe://fleet.test/node/a_b", wantError: "only a-z"},
		{text: "spiffe://fleet.test/node", wantError: "none of /server/ID"},
		{text: "spiffe://fleet.test/node/a/b", wantError: "none of /server/ID"},
		{text: "spiffe://fleet.test/site/oslo/node/a", wantError: "none of /server/ID"},
		{text: "spiffe://fleet.test/workload/a", wantError: "none of /server/ID"},
		{text: "spiffe://fleet.test/ns/a/node/b", wantError: "none of /server/ID"},
		{text: "spiffe://fleet.test/ns/A/workload/b", wantError: "namespace"},
		{text: "spiffe://fleet.test", wantError: "none of /server/ID"},
		{text: "spiffe://Fleet.test/node/a", wantError: "trust domain"},
		{text: "spiffe:///node/a", wantError: "trust domain"},
		{text: "https://fleet.test/node/a", wantError: "scheme"},
		{text: "", wantError: "empty"},
	} {
		t.Run(c.text, func(t *testing.T) {
			id, err := identity.Parse(c.text)
			if c.wantError != "" {
				if !errors.Is(err, identity.ErrInvalidID) || !strings.Contains(err.Error(), c.wantError) {
					t.Fatalf("error is %v, want one that wraps ErrInvalidID and has %q", err, c.wantError)
				}
				if !id.IsZero() {
					t.Fatalf("got %v beside the error", id)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id.Kind() != c.kind || id.Namespace() != c.ns || id.Name() != c.name || id.TrustDomain() != td {
				t.Fatalf("got %s %q %q in %s", id.Kind(), id.Namespace(), id.Name(), id.TrustDomain())
			}
			if id.String() != c.text || id.SPIFFE().String() != c.text {
				t.Fatalf("reads back as %s and %s", id, id.SPIFFE())
			}
		})
	}
}

func TestConstructorsRefuseWhatParseRefuses(t *testing.T) {
	for name, f := range map[string]func() (identity.ID, error){
		"empty name":         func() (identity.ID, error) { return identity.NodeID(td, "") },
		"slash":              func() (identity.ID, error) { return identity.UserID(td, "a/b") },
		"no trust domain":    func() (identity.ID, error) { return identity.ServerID(spiffeid.TrustDomain{}, "a") },
		"empty namespace":    func() (identity.ID, error) { return identity.WorkloadID(td, "", "a") },
		"workload by New":    func() (identity.ID, error) { return identity.New(td, identity.KindWorkload, "a") },
		"unknown by New":     func() (identity.ID, error) { return identity.New(td, identity.KindUnknown, "a") },
		"long trust domain":  func() (identity.ID, error) { return identity.NodeID(longDomain(t, 256), "a") },
		"namespace with dot": func() (identity.ID, error) { return identity.WorkloadID(td, "a.b", "a") },
	} {
		if id, err := f(); !errors.Is(err, identity.ErrInvalidID) || !id.IsZero() {
			t.Errorf("%s: got %v, %v", name, id, err)
		}
	}
	if _, err := identity.NodeID(longDomain(t, 255), "a"); err != nil {
		t.Errorf("a trust domain of 255 characters: %v", err)
	}
}

func longDomain(t *testing.T, n int) spiffeid.TrustDomain {
	d, err := spiffeid.TrustDomainFromString(strings.Repeat("a", n))
	if err != nil {
		t.Skip("go-spiffe refuses a long trust domain itself")
	}
	return d
}

func TestZeroIDIsNothing(t *testing.T) {
	var id identity.ID
	if !id.IsZero() || id.String() != "" || !id.SPIFFE().IsZero() || id.Kind() != identity.KindUnknown {
		t.Fatalf("zero id is %q %v", id, id.SPIFFE())
	}
	if err := identity.AuthorizeKinds(td, identity.KindUnknown)(id.SPIFFE(), nil); err == nil {
		t.Fatal("the zero id was let in")
	}
	if err := identity.AuthorizeIDs(id)(id.SPIFFE(), nil); err == nil {
		t.Fatal("the zero id was let in by AuthorizeIDs")
	}
	text, _ := id.MarshalText()
	back := mustID(t, "spiffe://fleet.test/node/a")
	if err := back.UnmarshalText(text); err != nil || !back.IsZero() {
		t.Fatalf("zero id reads back as %v, %v", back, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"spiffe://fleet.test/server/s1", "spiffe://fleet.test/ns/a/workload/b", "spiffe://x/user/-", "spiffe://x/node/%41", "spiffe://x//node/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.Parse(s)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("%q gave both %v and %v", s, id, err)
			}
			return
		}
		if id.String() != s {
			t.Fatalf("%q reads back as %q", s, id)
		}
		if identity.CheckName(id.Name()) != nil || id.Kind() == identity.KindUnknown {
			t.Fatalf("%q gave an invalid id", s)
		}
		again, err := identity.FromSPIFFE(id.SPIFFE())
		if err != nil || again != id {
			t.Fatalf("%q is not the same by SPIFFE id: %v %v", s, again, err)
		}
	})
}
