package identity_test

import (
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"redoubt.dev/redoubt/identity"
)

func open(t *testing.T, dir string) *identity.DiskSource {
	t.Helper()
	d, err := identity.OpenDisk(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestColdStartServesWhatWasStored(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	a, trust := authority(t, td)
	_, farTrust := authority(t, foreign)
	d := open(t, dir)
	if _, err := d.GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) {
		t.Fatalf("a new directory gives %v", err)
	}
	changed := d.Updated()
	svid := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	for _, err := range []error{d.SetBundle(trust), d.SetBundle(farTrust), d.Set(svid)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-changed:
	default:
		t.Fatal("nobody was told of the change")
	}
	key, err := d.EnrolmentKey()
	if err != nil {
		t.Fatal(err)
	}

	again := open(t, dir)
	got, err := again.GetX509SVID()
	if err != nil || !got.Certificates[0].Equal(svid.Certificates[0]) {
		t.Fatalf("after a restart: %v, %v", got, err)
	}
	for _, b := range []*x509bundle.Bundle{trust, farTrust} {
		if kept, err := again.GetX509BundleForTrustDomain(b.TrustDomain()); err != nil || !kept.Equal(b) {
			t.Fatalf("bundle of %s after a restart: %v", b.TrustDomain(), err)
		}
	}
	key2, err := again.EnrolmentKey()
	if err != nil || !key2.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
		t.Fatalf("the enrolment key changed: %v", err)
	}

	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		want := os.FileMode(0o600)
		if info.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", path, info.Mode().Perm(), want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBundleNeverBecomesEmpty(t *testing.T) {
	dir := t.TempDir()
	_, trust := authority(t, td)
	d := open(t, dir)
	if err := d.SetBundle(trust); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*x509bundle.Bundle{nil, x509bundle.New(td)} {
		if err := d.SetBundle(b); !errors.Is(err, identity.ErrEmptyBundle) {
			t.Fatalf("an empty bundle gives %v", err)
		}
	}
	// What the caller does to its own bundle afterwards changes nothing here.
	trust.RemoveX509Authority(trust.X509Authorities()[0])
	for _, src := range []*identity.DiskSource{d, open(t, dir)} {
		if b, err := src.GetX509BundleForTrustDomain(td); err != nil || b.Empty() {
			t.Fatalf("the bundle is gone: %v", err)
		}
	}
}

// Each file is cut at every tenth byte; the content before the last write must
// be served, or the whole new one, and never anything else.
func TestTornWriteKeepsThePrevious(t *testing.T) {
	a, trust := authority(t, td)
	second, _ := authority(t, td)
	dir := t.TempDir()
	d := open(t, dir)
	before := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	after := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	both := trust.Clone()
	both.AddX509Authority(second.Certificate())
	for _, err := range []error{d.Set(before), d.SetBundle(trust), d.Set(after), d.SetBundle(both)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(wantSVID, wantBundle bool) {
		t.Helper()
		src := open(t, dir)
		svid, err := src.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if newer := svid.Certificates[0].Equal(after.Certificates[0]); newer != wantSVID || !newer && !svid.Certificates[0].Equal(before.Certificates[0]) {
			t.Fatalf("serves the new SVID: %v", newer)
		}
		b, err := src.GetX509BundleForTrustDomain(td)
		if err != nil {
			t.Fatal(err)
		}
		if newer := b.Equal(both); newer != wantBundle || !newer && !b.Equal(trust) {
			t.Fatalf("serves the new bundle: %v, it has %d authorities", newer, len(b.X509Authorities()))
		}
	}
	check(true, true)
	for _, name := range []string{"svid.pem", "bundle.pem"} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		firstEnd := strings.Index(string(whole), "-----END")
		for cut := 0; cut < len(whole)-2; cut += 10 {
			// A cut just between two certificates cannot be told from a file
			// that ends there; renaming rules it out.
			if cut > firstEnd && cut < firstEnd+30 && name == "bundle.pem" {
				continue
			}
			if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			check(name != "svid.pem", name != "bundle.pem")
		}
		zeros := make([]byte, len(whole)) // what some file systems leave
		if err := os.WriteFile(path, zeros, 0o600); err != nil {
			t.Fatal(err)
		}
		check(name != "svid.pem", name != "bundle.pem")
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// A damaged file does not become the fallback of the next write.
	if err := os.WriteFile(filepath.Join(dir, "svid.pem"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Set(after); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "svid.pem")); err != nil {
		t.Fatal(err)
	}
	check(false, true)
}

func TestDamageWithoutAPreviousIsAnError(t *testing.T) {
	for _, name := range []string{"svid.pem", "bundle.pem"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := identity.OpenDisk(dir, quiet())
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "enrol this host anew") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestOpenKeysAreRefusedWithTheRemedy(t *testing.T) {
	a, _ := authority(t, td)
	dir := t.TempDir()
	if err := open(t, dir).Set(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "svid.pem")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.OpenDisk(dir, quiet()); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Fatalf("error is %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.OpenDisk(dir, quiet()); err == nil || !strings.Contains(err.Error(), "chmod 700 "+dir) {
		t.Fatalf("error is %v", err)
	}
}

func TestSetRefusesAKeyOfAnotherSVID(t *testing.T) {
	a, _ := authority(t, td)
	one, two := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour), sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	if _, err := identity.NewSVID(one.PrivateKey, two.Certificates); err == nil {
		t.Fatal("joined a key with another key's certificate")
	}
	mixed := *one
	mixed.Certificates = two.Certificates
	if err := open(t, t.TempDir()).Set(&mixed); err == nil {
		t.Fatal("stored it")
	}
}

func TestClosedSourceServesNothing(t *testing.T) {
	a, trust := authority(t, td)
	src := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour), trust)
	changed := src.Updated()
	src.Close()
	<-changed
	<-src.Updated()
	if _, err := src.GetX509SVID(); !errors.Is(err, identity.ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if _, err := src.GetX509BundleForTrustDomain(td); !errors.Is(err, identity.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestContextFileReadsBack(t *testing.T) {
	a, trust := authority(t, td)
	second, _ := authority(t, td)
	trust.AddX509Authority(second.Certificate())
	path := filepath.Join(t.TempDir(), "admin.pem")
	f := identity.File{Addresses: []string{"10.0.0.1:7443", "[fd00::1]:7443"}, SVID: sign(t, a, "spiffe://fleet.test/user/ada", time.Hour), Bundle: trust}
	if err := identity.SaveFile(path, f); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	got, err := identity.LoadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got.Addresses, " ") != strings.Join(f.Addresses, " ") || got.SVID.ID != f.SVID.ID || !got.Bundle.Equal(trust) {
		t.Fatalf("reads back as %+v", got)
	}
	whole, _ := os.ReadFile(path)
	for _, cut := range []int{0, 10, len(whole) / 3, len(whole) / 2, len(whole) - 5} {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.LoadFile(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	f.Bundle = x509bundle.New(td)
	if err := identity.SaveFile(path, f); !errors.Is(err, identity.ErrEmptyBundle) {
		t.Fatalf("saved without authorities: %v", err)
	}
}
