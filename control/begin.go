package control

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// AdminUser is the first user of a fleet.
const AdminUser = "admin"

// InitConfig is what begins a fleet.
type InitConfig struct {
	Dir         string
	ID          string
	TrustDomain string
	Addresses   Addresses
	// AdminContext is the file that the first administrator's context is
	// written to, mode 0600.
	AdminContext string
	UserTTL      time.Duration // zero: a week
	Log          *slog.Logger
}

// ErrRunning: the fleet has begun before, and its server is at work.
var ErrRunning = errors.New("it runs already")

// Init makes the data directory of a fleet's first server and the first
// administrator's context. It needs no network and starts nothing. The directory
// is a server's only once all else is there, the context too, so that what fails
// half way is repeated. Repeated beside the server at work it changes nothing and
// says ErrRunning.
func Init(cfg InitConfig) error {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	if err := identity.CheckName(cfg.ID); err != nil {
		return fmt.Errorf("server id: %w", err)
	}
	set, err := readSettings(cfg.Dir)
	switch {
	case err == nil:
		if set.ID != cfg.ID || set.TrustDomain != cfg.TrustDomain || !set.First {
			return fmt.Errorf("%s belongs to server %s of trust domain %s already: use another --data-dir", cfg.Dir, set.ID, set.TrustDomain)
		}
		lock, err := consensus.Exclude(filepath.Join(cfg.Dir, "raft"))
		if errors.Is(err, consensus.ErrInUse) {
			if had := (Addresses{set.APIAddress, set.RaftAddress, set.EnrollAddress}); had != cfg.Addresses {
				return fmt.Errorf("server %s runs with the addresses %s, %s and %s: stop it to give it others", set.ID, had.API, had.Raft, had.Enroll)
			}
			return fmt.Errorf("server %s of %s: %w: %w", set.ID, set.TrustDomain, ErrRunning, err)
		}
		if err != nil {
			return err
		}
		defer lock.Close()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails since Go 1.24
		set = settings{ID: cfg.ID, TrustDomain: cfg.TrustDomain, ClusterID: hex.EncodeToString(id[:]), First: true}
	}
	set.APIAddress, set.RaftAddress, set.EnrollAddress = cfg.Addresses.API, cfg.Addresses.Raft, cfg.Addresses.Enroll
	if err := identity.MakePrivateDir(cfg.Dir); err != nil {
		return err
	}
	authority, err := openAuthority(cfg.Dir, td)
	if err != nil {
		return err
	}
	bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{authority.Certificate()})
	if err := storeBundle(cfg.Dir, bundle, cfg.Log); err != nil {
		return err
	}
	if cfg.AdminContext != "" {
		if err := writeAdminContext(set.APIAddress, authority, bundle, cfg.AdminContext, cfg.UserTTL); err != nil {
			return err
		}
	}
	return set.write(cfg.Dir)
}

// WriteAdminContext signs a new context of the first administrator with the
// authority in dir: for the host's root, also when the old context was lost or
// has expired. The server need not run.
func WriteAdminContext(dir, path string, ttl time.Duration) error {
	set, err := readSettings(dir)
	if err != nil {
		return err
	}
	td, err := spiffeid.TrustDomainFromString(set.TrustDomain)
	if err != nil {
		return err
	}
	authority, err := ca.Load(filepath.Join(dir, "ca"))
	if err != nil {
		return err
	}
	disk, err := identity.OpenDisk(filepath.Join(dir, "identity"), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer disk.Close()
	bundle, err := disk.GetX509BundleForTrustDomain(td)
	if err != nil {
		return err
	}
	return writeAdminContext(set.APIAddress, authority, bundle, path, ttl)
}

func writeAdminContext(address string, authority *ca.Authority, bundle *x509bundle.Bundle, path string, ttl time.Duration) error {
	if err := authority.Activate(bundle); err != nil {
		return err
	}
	if ttl == 0 {
		ttl = 7 * 24 * time.Hour
	}
	user, err := identity.UserID(authority.TrustDomain(), AdminUser)
	if err != nil {
		return err
	}
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		return err
	}
	chain, err := authority.SignSVID(csr, user, ttl)
	if err != nil {
		return err
	}
	svid, err := identity.NewSVID(key, chain)
	if err != nil {
		return err
	}
	if err := identity.SaveFile(path, identity.File{Addresses: []string{address}, Bundle: bundle, SVID: svid}); err != nil {
		return fmt.Errorf("write the administrator's context: %w", err)
	}
	return nil
}

// JoinConfig is what makes a server of an existing fleet.
type JoinConfig struct {
	Dir       string
	ID        string
	Addresses Addresses
	// Servers are enrolment addresses; the token's own where empty.
	Servers []string
	Token   string // the text of a join token of role server
	Version string
	Log     *slog.Logger
}

// Join admits this server to a fleet and makes its data directory. The leader
// makes it a voter once Run serves and has caught up.
func Join(ctx context.Context, cfg JoinConfig) error {
	if err := identity.CheckName(cfg.ID); err != nil {
		return fmt.Errorf("server id: %w", err)
	}
	token, err := attest.ParseToken(cfg.Token)
	if err != nil {
		return err
	}
	if token.Role != identity.KindServer {
		return fmt.Errorf("join token %s is for a %s: make one with `redoubt node join-token --role server`", token.ID, token.Role)
	}
	if set, err := readSettings(cfg.Dir); err == nil {
		return fmt.Errorf("%s belongs to server %s of trust domain %s already: start it with `redoubt server --data-dir %s`, or use another --data-dir", cfg.Dir, set.ID, set.TrustDomain, cfg.Dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := identity.MakePrivateDir(cfg.Dir); err != nil {
		return err
	}
	authority, err := openAuthority(cfg.Dir, token.TrustDomain)
	if err != nil {
		return err
	}
	proof, err := authority.Proof()
	if err != nil {
		return err
	}
	set := settings{
		ID: cfg.ID, TrustDomain: token.TrustDomain.Name(),
		APIAddress: cfg.Addresses.API, RaftAddress: cfg.Addresses.Raft, EnrollAddress: cfg.Addresses.Enroll,
	}
	servers := cfg.Servers
	if len(servers) == 0 {
		servers = token.Addresses
	}
	if len(servers) == 0 {
		return errors.New("no server to join: name one with --join HOST:7452")
	}
	req := &redoubtv1.EnrollServerRequest{Token: cfg.Token, Server: set.server(cfg.Version), Authority: authority.Certificate().Raw, Proof: proof}
	var resp *redoubtv1.EnrollServerResponse
	var errs []error
	for _, address := range servers {
		if resp, err = enrollServer(ctx, address, token, req); err == nil {
			break
		}
		errs = append(errs, fmt.Errorf("join at %s: %s", address, status.Convert(err).Message()))
	}
	if resp == nil {
		return errors.Join(errs...)
	}
	bundle := x509bundle.New(token.TrustDomain)
	for _, a := range resp.GetAuthorities() {
		cert, err := parseAuthority(a.GetCertificate())
		if err != nil {
			return fmt.Errorf("authority of server %s: %w", a.GetServer(), err)
		}
		bundle.AddX509Authority(cert)
	}
	if !bundle.HasX509Authority(authority.Certificate()) {
		return errors.New("join: the fleet's answer does not trust this server's authority")
	}
	if err := storeBundle(cfg.Dir, bundle, cfg.Log); err != nil {
		return err
	}
	set.ClusterID = resp.GetClusterId()
	return set.write(cfg.Dir)
}

func enrollServer(ctx context.Context, address string, token attest.Token, req *redoubtv1.EnrollServerRequest) (*redoubtv1.EnrollServerResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(attest.PinnedCredentials(token.TrustDomain, token.Pins)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return redoubtv1.NewEnrollmentServiceClient(conn).EnrollServer(ctx, req)
}

// openAuthority loads the authority of dir, made now if there is none: a Join
// that is repeated must show the same key.
func openAuthority(dir string, td spiffeid.TrustDomain) (*ca.Authority, error) {
	path := filepath.Join(dir, "ca")
	a, err := ca.Create(path, td)
	if errors.Is(err, ca.ErrExists) {
		a, err = ca.Load(path)
	}
	if err == nil && a.TrustDomain() != td {
		return nil, fmt.Errorf("the authority in %s is of trust domain %s, not %s: use another --data-dir", path, a.TrustDomain(), td)
	}
	return a, err
}

func storeBundle(dir string, b *x509bundle.Bundle, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	disk, err := identity.OpenDisk(filepath.Join(dir, "identity"), log)
	if err != nil {
		return err
	}
	return errors.Join(disk.SetBundle(b), disk.Close())
}

func parseAuthority(der []byte) (*x509.Certificate, error) { return x509.ParseCertificate(der) }
