package cli_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// run runs a command in this process.
func run(t *testing.T, ctx context.Context, contextFile string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs syncBuffer
	code = cli.Run(ctx, cli.Env{
		Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
		Getenv: func(name string) string {
			return map[string]string{"REDOUBT_CONTEXT": contextFile, "HOME": "/nonexistent"}[name]
		},
	})
	return out.String(), errs.String(), code
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, w *world, id string) string {
	t.Helper()
	address, stop, err := w.serve(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return address
}

// closedPort is an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// silentPort is an address where connections are taken and nothing is said.
func silentPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
	return l.Addr().String()
}

func contextFor(t *testing.T, w *world, ttl time.Duration, addresses ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ann.context")
	if err := w.context(path, ttl, addresses...); err != nil {
		t.Fatal(err)
	}
	return path
}

// elder is a second authority of a world, which signs identities that are old
// already: a real one signs only for from now on.
type elder struct {
	w    *world
	key  crypto.Signer
	cert *x509.Certificate
}

// newElder makes an authority that the world's servers know, if they start later.
func newElder(t *testing.T, w *world) *elder {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	e := &elder{w: w, key: key}
	root := *w.authority.Certificate()
	root.PublicKey, root.SubjectKeyId, root.AuthorityKeyId = key.Public(), []byte("elder"), nil
	root.NotBefore = time.Now().Add(-24 * time.Hour)
	e.cert = e.sign(t, &root, &root)
	w.bundle.AddX509Authority(e.cert)
	return e
}

func (e *elder) sign(t *testing.T, template, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, template.PublicKey, e.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// context is one whose identity was signed a while ago and has some time left.
func (e *elder) context(t *testing.T, ago, left time.Duration, addresses ...string) string {
	t.Helper()
	path := contextFor(t, e.w, time.Hour, addresses...)
	f, err := identity.LoadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	leaf := *f.SVID.Certificates[0]
	leaf.AuthorityKeyId, leaf.NotBefore, leaf.NotAfter = nil, time.Now().Add(-ago), time.Now().Add(left)
	f.SVID.Certificates = []*x509.Certificate{e.sign(t, &leaf, e.cert)}
	if err := identity.SaveFile(path, f); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheFirstServerThatAnswersIsUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	file := contextFor(t, w, time.Hour, closedPort(t), silentPort(t), start(t, w, "s1"))
	begun := time.Now()
	_, stderr, code := run(t, t.Context(), file, "node", "list")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	// One silent server costs its time-out of two seconds, a closed port nothing.
	if took := time.Since(begun); took < time.Second || took > 6*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestWhereNoServerAnswersEachIsNamedWithItsReason(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t, t.TempDir()), newWorld(t, t.TempDir())
	closed, silent, foreign := closedPort(t), silentPort(t), start(t, other, "s1")
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	t.Cleanup(func() { plain.Close() })
	_, stderr, code := run(t, t.Context(), contextFor(t, w, time.Hour, closed, silent, foreign, plain.Addr().String()), "node", "list")
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for _, want := range []string{
		"no server of context ",
		closed + ": connection refused: nothing listens there",
		silent + ": no answer in",
		foreign + ": it is a server of another fleet",
		plain.Addr().String() + ": something else than a Redoubt server listens there",
		"Is a server running there, and can this host reach it?",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in:\n%s", want, stderr)
		}
	}
}

func TestAnIdentityRenewsItselfInItsSecondHalf(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	old := newElder(t, w)
	address := start(t, w, "s1")
	w.addresses = []string{"10.9.9.9:7450", address}
	file := old.context(t, 2*time.Hour, 30*time.Minute, address)
	before, err := identity.LoadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := run(t, t.Context(), file, "node", "list"); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	after, err := identity.LoadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !after.SVID.Certificates[0].NotAfter.After(before.SVID.Certificates[0].NotAfter.Add(time.Minute)) {
		t.Errorf("it ends at %s, before the renewal at %s", after.SVID.Certificates[0].NotAfter, before.SVID.Certificates[0].NotAfter)
	}
	if after.SVID.ID != before.SVID.ID {
		t.Errorf("it became %s", after.SVID.ID)
	}
	if want := []string{address, "10.9.9.9:7450"}; !equal(after.Addresses, want) {
		t.Errorf("servers %v, want %v: the one that answered first", after.Addresses, want)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", st.Mode().Perm())
	}
	if w.renewals != 1 {
		t.Errorf("%d renewals", w.renewals)
	}
	// The new one is in its first half, and the next command leaves it alone.
	if _, _, code := run(t, t.Context(), file, "node", "list"); code != 0 || w.renewals != 1 {
		t.Errorf("exit code %d after %d renewals", code, w.renewals)
	}
}

func equal(a, b []string) bool { return strings.Join(a, " ") == strings.Join(b, " ") }

func TestARenewalThatFailsEarlyIsToldAndBorne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.fail = func(method string) error {
		if method == "RenewIdentity" {
			return status.Error(codes.PermissionDenied, `user "ann" holds no role any more`)
		}
		return nil
	}
	file := newElder(t, w).context(t, 6*time.Hour, 150*time.Minute, start(t, w, "s1"))
	_, stderr, code := run(t, t.Context(), file, "node", "list")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	if want := regexp.MustCompile(`the identity of context .* ends in 2h and could not be renewed yet: user "ann" holds no role any more`); !want.MatchString(stderr) {
		t.Errorf("told: %s", stderr)
	}
}

func TestAnExpiredIdentityNamesTheRemedy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	file := newElder(t, w).context(t, time.Hour, -time.Second, start(t, w, "s1"))
	_, stderr, code := run(t, t.Context(), file, "node", "list")
	if want := "redoubt server admin-context FILE"; code != 2 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "expired") {
		t.Errorf("exit code %d, and no %q in: %s", code, want, stderr)
	}
}

// A server that is told of later is known when the first one is gone.
func TestALoneServersContextLearnsOfTheOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	first, stop, err := w.serve("s1")
	if err != nil {
		t.Fatal(err)
	}
	second := start(t, w, "s2")
	w.addresses = []string{first, second}
	file := contextFor(t, w, time.Hour, first)
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := run(t, t.Context(), file, "node", "list"); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	stop()
	if _, stderr, code := run(t, t.Context(), file, "node", "list"); code != 0 {
		t.Errorf("with the first server gone: exit code %d: %s", code, stderr)
	}
}

func TestAWatchShowsAChangeAndSurvivesItsServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	first, stop, err := w.serve("s1")
	if err != nil {
		t.Fatal(err)
	}
	second := start(t, w, "s2")
	file := contextFor(t, w, time.Hour, first, second)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs syncBuffer
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, cli.Env{
			Args: []string{"node", "list", "--watch", "-o", "name"}, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
			Getenv: func(name string) string { return map[string]string{"REDOUBT_CONTEXT": file}[name] },
		})
	}()
	until := func(text string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !strings.Contains(out.String(), text); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no %q in %q (%s)", text, out.String(), errs.String())
			}
		}
	}
	add := func(id string) {
		w.change(func() { w.nodes.Nodes = append(w.nodes.Nodes, &redoubtv1.Node{Id: id}) })
	}
	add("one")
	until("one\n")
	add("two")
	until("one\ntwo\n")
	stop()
	add("three")
	until("one\ntwo\nthree\n")
	cancel()
	if c := <-code; c != 130 {
		t.Errorf("exit code %d when interrupted: %s", c, errs.String())
	}
}

func TestAWriteIsNotRepeatedUnderAnotherID(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	file := contextFor(t, w, time.Hour, start(t, w, "s1"))
	calls := 0
	w.fail = func(method string) error {
		if method == "StopWorkload" {
			if calls++; calls < 3 {
				return status.Error(codes.Aborted, "outcome unknown")
			}
		}
		return nil
	}
	w.workloads[key("", "web")] = &redoubtv1.StoredWorkload{Spec: &redoubtv1.Workload{Name: "web"}}
	if _, stderr, code := run(t, t.Context(), file, "stop", "web"); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if len(w.commands) != 1 {
		t.Errorf("%d command ids for one command", len(w.commands))
	}
	for id, n := range w.commands {
		if n != 3 || len(id) < 20 {
			t.Errorf("id %q was seen %d times, want 3", id, n)
		}
	}
}

var errFull = errors.New("no space left on device")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	file := contextFor(t, w, time.Hour, start(t, w, "s1"))
	w.nodes.Nodes = []*redoubtv1.Node{{Id: "one"}}
	var errs syncBuffer
	code := cli.Run(t.Context(), cli.Env{
		Args: []string{"node", "list"}, Stdin: strings.NewReader(""), Stdout: fullDisk{}, Stderr: &errs,
		Getenv: func(name string) string { return map[string]string{"REDOUBT_CONTEXT": file}[name] },
	})
	if code != 2 || !strings.Contains(errs.String(), errFull.Error()) {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}
