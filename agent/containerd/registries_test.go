package containerd

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testImage is an image as a registry has it.
type testImage struct {
	manifest  []byte
	mediaType string
	blobs     map[digest.Digest][]byte
	layer     digest.Digest // the first
}

func (i *testImage) digest() digest.Digest { return digest.FromBytes(i.manifest) }

// layerOf is a layer with one file, gzipped, and the digest of what it unpacks to.
func layerOf(t testing.TB, name string, size int64, content io.Reader) ([]byte, digest.Digest) {
	t.Helper()
	var packed bytes.Buffer
	hash := sha256.New()
	zip, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	w := tar.NewWriter(io.MultiWriter(zip, hash))
	if err := w.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o755, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, content, size); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes(), digest.NewDigestFromBytes(digest.SHA256, hash.Sum(nil))
}

// imageOf is an image of one layer of random content, or of what is given.
func imageOf(t testing.TB, arch string, size int64, content io.Reader) *testImage {
	t.Helper()
	if content == nil {
		content = rand.Reader
	}
	layer, diff := layerOf(t, "file", size, content)
	config := mustJSON(t, ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}}})
	i := &testImage{mediaType: ocispec.MediaTypeImageManifest, layer: digest.FromBytes(layer), blobs: map[digest.Digest][]byte{}}
	i.blobs[i.layer], i.blobs[digest.FromBytes(config)] = layer, config
	i.manifest = mustJSON(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: i.mediaType,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: i.layer, Size: int64(len(layer))}}})
	return i
}

// indexOf is an index over images, one an architecture.
func indexOf(t testing.TB, byArch map[string]*testImage) *testImage {
	t.Helper()
	i := &testImage{mediaType: ocispec.MediaTypeImageIndex, blobs: map[digest.Digest][]byte{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: i.mediaType}
	for arch, img := range byArch {
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: img.mediaType, Digest: img.digest(), Size: int64(len(img.manifest)), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}})
		for k, v := range img.blobs {
			i.blobs[k] = v
		}
		i.blobs[img.digest()] = img.manifest
	}
	i.manifest = mustJSON(t, index)
	return i
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// hostile is a registry in this process that serves one image under any name
// and tag, and lets a test do otherwise first.
type hostile struct {
	image *testImage
	// first may answer in its place: then it returns true.
	first func(w http.ResponseWriter, r *http.Request) bool

	mu   sync.Mutex
	seen []string // method, path and range of each request
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.seen = append(h.seen, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	first := h.first
	h.mu.Unlock()
	if first != nil && first(w, r) {
		return
	}
	h.serve(w, r)
}

func (h *hostile) serve(w http.ResponseWriter, r *http.Request) {
	_, what, _ := strings.Cut(r.URL.Path[1:], "/")
	data, ok := h.image.manifest, true
	if i := strings.LastIndex(what, "/sha256:"); i >= 0 {
		if d := digest.Digest(what[i+1:]); d != h.image.digest() {
			data, ok = h.image.blobs[d]
		}
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.Contains(what, "/manifests/") {
		var doc struct {
			MediaType string `json:"mediaType"`
		}
		_ = json.Unmarshal(data, &doc)
		w.Header().Set("Content-Type", doc.MediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(data).String())
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// count is how many requests had all of parts in them.
func (h *hostile) count(parts ...string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
next:
	for _, s := range h.seen {
		for _, p := range parts {
			if !strings.Contains(s, p) {
				continue next
			}
		}
		n++
	}
	return n
}

// serveHostile returns the registry's host:port, in plain HTTP on loopback.
func serveHostile(t *testing.T, h *hostile) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return strings.TrimPrefix(s.URL, "http://")
}

// realRegistry is a registry in a process of its own: TLS by a root that
// nobody knows, and a login.
type realRegistry struct {
	addr string
	root []byte // PEM
}

const (
	realUser   = "fleet"
	realSecret = "c4nary-s3cret"
	// realHash is bcrypt's of realSecret, as htpasswd has it.
	realHash = "$2b$04$Brx0o5RNSANNq2al/Fb2auAT49xqkzmc3B9YKFcTSJ6RjX4a4LDNO"
	serveEnv = "REDOUBT_TEST_REGISTRY"
)

// realRegistries are the ones that there are here, by the name of their kind.
// go-containerregistry's always is; Debian's docker-registry (the CNCF's
// distribution) if it is installed.
func realRegistries(t *testing.T) map[string]func(*testing.T) *realRegistry {
	all := map[string]func(*testing.T) *realRegistry{"go-containerregistry": startGGCR}
	if path, err := exec.LookPath("docker-registry"); err == nil {
		all["distribution"] = func(t *testing.T) *realRegistry { return startDistribution(t, path) }
	} else {
		t.Log("the case of the CNCF's registry is left out: Debian's package docker-registry is not installed")
	}
	return all
}

func startGGCR(t *testing.T) *realRegistry {
	t.Helper()
	dir := t.TempDir()
	r := &realRegistry{root: writeCertificate(t, dir)}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startProcess(t, cmd)
	buf := make([]byte, 64)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatalf("the registry's process says nothing: %v", err)
	}
	r.addr = strings.TrimSpace(string(buf[:n]))
	return r
}

// startProcess starts cmd, and ends it with the test. Pdeathsig goes by the
// thread that started it, so that one is kept.
func startProcess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	started, end, gone := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(gone)
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		<-end
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(end); <-gone })
}

// serveRegistry is the process of startGGCR.
func serveRegistry(dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	handler := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, secret, ok := r.BasicAuth(); !ok || user != realUser || secret != realSecret {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})}
	fmt.Println(listener.Addr())
	return server.ServeTLS(listener, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
}

func startDistribution(t *testing.T, program string) *realRegistry {
	t.Helper()
	dir := t.TempDir()
	r := &realRegistry{root: writeCertificate(t, dir)}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = probe.Addr().String()
	probe.Close()
	for name, text := range map[string]string{
		"htpasswd": realUser + ":" + realHash + "\n",
		"config.yml": fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}}\n"+
			"http: {addr: %q, tls: {certificate: %s/cert.pem, key: %s/key.pem}}\nauth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir, r.addr, dir, dir, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "serve", filepath.Join(dir, "config.yml"))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "OTEL_TRACES_EXPORTER=none"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	startProcess(t, cmd)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if resp, err := r.client().Get("https://" + r.addr + "/v2/"); err == nil {
			resp.Body.Close()
			return r
		} else if time.Now().After(deadline) {
			t.Fatalf("the registry does not come up: %v", err)
		}
	}
}

// client trusts the registry and is logged in.
func (r *realRegistry) client() *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.root)
	return &http.Client{Timeout: time.Minute, Transport: loggedIn{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}}
}

type loggedIn struct{ http.RoundTripper }

func (l loggedIn) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(realUser, realSecret)
	return l.RoundTripper.RoundTrip(r)
}

// push puts an image there under repo:tag.
func (r *realRegistry) push(t *testing.T, repo, tag string, img *testImage) {
	t.Helper()
	client, base := r.client(), "https://"+r.addr
	send := func(method, to, kind string, data []byte) *http.Response {
		req, err := http.NewRequestWithContext(context.Background(), method, to, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode > 299 {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
			t.Fatalf("%s %s: %s %s", method, to, resp.Status, body)
		}
		return resp
	}
	manifests := map[string][]byte{}
	for d, data := range img.blobs {
		if bytes.Contains(data, []byte(`"schemaVersion"`)) {
			manifests[d.String()] = data
			continue
		}
		at := send("POST", base+"/v2/"+repo+"/blobs/uploads/", "", nil).Header.Get("Location")
		if strings.HasPrefix(at, "/") {
			at = base + at
		}
		mark := "?"
		if strings.Contains(at, "?") {
			mark = "&"
		}
		send("PUT", at+mark+"digest="+d.String(), "application/octet-stream", data)
	}
	for name, data := range manifests {
		send("PUT", base+"/v2/"+repo+"/manifests/"+name, ocispec.MediaTypeImageManifest, data)
	}
	send("PUT", base+"/v2/"+repo+"/manifests/"+tag, img.mediaType, img.manifest)
}

// writeCertificate makes cert.pem and key.pem for 127.0.0.1, and returns the
// certificate, which is its own root.
func writeCertificate(t *testing.T, dir string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a private root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"cert.pem": cert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert
}
