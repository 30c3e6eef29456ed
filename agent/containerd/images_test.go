package containerd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/registry"
)

// shelf is one node's containerd for all cases about images.
type shelf struct {
	*node
	registries string
	said       *lockedBuffer // the driver's log
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

const shelfLimit = 64 << 20

func TestImages(t *testing.T) {
	cfg := realConfig(t, "images")
	s := &shelf{registries: t.TempDir(), said: &lockedBuffer{}}
	cfg.Registries = registry.Dir(s.registries)
	cfg.Traffic = registry.Limits{Wait: 4 * time.Second, Stall: 2 * time.Second, Again: 20 * time.Millisecond}
	cfg.Images = ImageLimits{MaxSize: shelfLimit}
	cfg.Log = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), s.said), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.node = startConfig(t, cfg)
	for _, tt := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"real registries", s.real},
		{"policies", s.policies},
		{"shared", s.shared},
		{"a torn pull goes on", s.torn},
		{"the last caller gone", s.abandoned},
		{"platforms", s.platforms},
		{"hostile", s.hostile},
		{"waits when asked", s.waits},
		{"credentials stay", s.credentialsStay},
		{"bomb", s.bomb},
		{"nothing in use is collected", s.collect},
		{"what torn pulls left is collected", s.collectTorn},
	} {
		t.Run(tt.name, tt.run)
	}
	if strings.Contains(s.said.String(), realSecret) {
		t.Error("the log holds the secret")
	}
	data, err := os.ReadFile(s.daemon.logPath())
	if err != nil || strings.Contains(string(data), realSecret) {
		t.Errorf("containerd's log holds the secret, or cannot be read: %v", err)
	}
}

func (s *shelf) ensure(t *testing.T, ref, policy string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	got, err := s.driver.EnsureImage(ctx, ref, policy, nil)
	if err != nil && (strings.Contains(err.Error(), realSecret) || strings.Contains(err.Error(), base64.StdEncoding.EncodeToString([]byte(realUser+":"+realSecret)))) {
		t.Errorf("an error holds the secret: %v", err)
	}
	return got, err
}

// refused wants an error with all of words, and of one line.
func (s *shelf) refused(t *testing.T, ref string, words ...string) {
	t.Helper()
	_, err := s.ensure(t, ref, driver.PullIfNotPresent)
	if err == nil {
		t.Errorf("%s was taken; want an error with %q", ref, words)
		return
	}
	if !errors.Is(err, driver.ErrImage) || strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 700 {
		t.Errorf("%s: the error %q is not one line of ErrImage", ref, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v\n  does not say %q", ref, err, w)
		}
	}
}

func (s *shelf) settings(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(s.registries, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
}

// has tells whether a blob is in the node's store.
func (s *shelf) has(t *testing.T, d digest.Digest) bool {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), s.cfg.namespace())
	ok, err := content.Exists(ctx, s.driver.client.ContentStore(), ocispec.Descriptor{Digest: d})
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// real goes through what a person meets who sets a node up for a private
// registry, against registries that are none of ours.
func (s *shelf) real(t *testing.T) {
	for kind, start := range realRegistries(t) {
		t.Run(kind, func(t *testing.T) {
			r := start(t)
			img := imageOf(t, goarch, 300<<10, nil)
			multi := indexOf(t, map[string]*testImage{goarch: img, "s390x": imageOf(t, "s390x", 1000, nil)})
			r.push(t, "team/app", "1", img)
			r.push(t, "team/app", "multi", multi)
			// A name of its own, so that nothing is taken for local.
			host := kind + ".test"
			app := host + "/team/app"
			server := fmt.Sprintf("server = \"https://%s\"\n", r.addr)

			s.settings(t, host+"/hosts.toml", server, 0o644)
			s.refused(t, app+":1", "unknown authority", "ca = ", s.registries)
			s.settings(t, host+"/ca.pem", string(r.root), 0o644)
			s.settings(t, host+"/hosts.toml", server+"ca = \"ca.pem\"\n", 0o644)
			s.refused(t, app+":1", "wants a login (401)", s.registries+"/config.json", "0600")
			login := func(secret string) string {
				return fmt.Sprintf(`{"auths":{"https://%s/v1/":{"auth":%q}}}`, r.addr, base64.StdEncoding.EncodeToString([]byte(realUser+":"+secret)))
			}
			s.settings(t, "config.json", login(realSecret), 0o644)
			s.refused(t, app+":1", "others can read it", "chmod 600 "+s.registries+"/config.json")
			s.settings(t, "config.json", login("wrong"), 0o600)
			s.refused(t, app+":1", "refuses the login that "+s.registries+"/config.json gives")
			s.settings(t, "config.json", login(realSecret), 0o600)
			for ref, want := range map[string]digest.Digest{
				app + ":1": img.digest(), app + ":multi": multi.digest(), app + "@" + img.digest().String(): img.digest(),
			} {
				if got, err := s.ensure(t, ref, ""); err != nil || got != want.String() {
					t.Errorf("%s: %s, %v; want %s", ref, got, err, want)
				}
			}
			s.refused(t, app+":none", "not there (404)")

			// A mirror goes first; one that is down is passed over.
			s.settings(t, "mirrored.test/ca.pem", string(r.root), 0o644)
			s.settings(t, "mirrored.test/hosts.toml", fmt.Sprintf("server = \"https://127.0.0.1:1\"\n[host.\"https://127.0.0.1:2\"]\n[host.\"https://%s\"]\nca = \"ca.pem\"\n", r.addr), 0o644)
			if got, err := s.ensure(t, "mirrored.test/team/app:1", driver.PullAlways); err != nil || got != img.digest().String() {
				t.Errorf("by a mirror: %s, %v", got, err)
			}
		})
	}
}

func (s *shelf) policies(t *testing.T) {
	h := &hostile{image: imageOf(t, goarch, 1000, nil)}
	ref := serveHostile(t, h) + "/policies:1"
	if _, err := s.ensure(t, ref, driver.PullNever); err == nil || !strings.Contains(err.Error(), "not on this node") || h.count() > 0 {
		t.Errorf("Never: %v, %d requests", err, h.count())
	}
	old, err := s.ensure(t, ref, driver.PullIfNotPresent)
	if err != nil {
		t.Fatal(err)
	}
	asked := h.count()
	h.image = imageOf(t, goarch, 2000, nil) // the tag moves
	for _, policy := range []string{driver.PullIfNotPresent, driver.PullNever, ""} {
		if got, err := s.ensure(t, ref, policy); err != nil || got != old || h.count() != asked {
			t.Errorf("%q: %s, %v, %d requests more; want what is there", policy, got, err, h.count()-asked)
		}
	}
	if got, err := s.ensure(t, ref, driver.PullAlways); err != nil || got != h.image.digest().String() {
		t.Errorf("Always: %s, %v; want %s", got, err, h.image.digest())
	}
	layers := h.count("GET /v2/policies/blobs/")
	if _, err := s.ensure(t, ref, driver.PullAlways); err != nil || h.count("GET /v2/policies/blobs/") != layers {
		t.Errorf("Always, not moved: %v; %d blobs fetched again", err, h.count("GET /v2/policies/blobs/")-layers)
	}
}

// shared: however many want an image, each part is asked for once, and each is
// told how far it is.
func (s *shelf) shared(t *testing.T) {
	img := imageOf(t, goarch, 2<<20, nil)
	half := make(chan struct{})
	h := &hostile{image: img}
	h.first = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "GET" || !strings.HasSuffix(r.URL.Path, img.layer.String()) {
			return false
		}
		data := img.blobs[img.layer]
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-half:
		case <-r.Context().Done():
		}
		_, _ = w.Write(data[len(data)/2:])
		return true
	}
	ref := serveHostile(t, h) + "/shared:1"
	var wg sync.WaitGroup
	var told sync.Map
	var waiting sync.WaitGroup
	const callers = 5
	waiting.Add(callers)
	for i := range callers {
		wg.Go(func() {
			var once sync.Once
			_, err := s.driver.EnsureImage(t.Context(), ref, "", func(stage string, done, total int64) {
				if done > 500<<10 && done < total {
					told.Store(i, stage)
					once.Do(waiting.Done)
				}
			})
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	waiting.Wait() // it blocks here for good if a caller is told nothing
	close(half)
	wg.Wait()
	if n := h.count("GET", img.layer.String()); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	told.Range(func(_, stage any) bool {
		if !strings.HasPrefix(stage.(string), "pull; ") || !strings.HasSuffix(stage.(string), " of 3 parts") {
			t.Errorf("told %q", stage)
		}
		return true
	})
}

// torn: the registry cuts a layer at 60 % and goes away; the next pull asks for
// the rest only.
func (s *shelf) torn(t *testing.T) {
	img := imageOf(t, goarch, 5<<20, nil)
	data := img.blobs[img.layer]
	cut := len(data) * 6 / 10
	var mu sync.Mutex
	down := true
	served := 0
	h := &hostile{image: img}
	h.first = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method != "GET" || !strings.HasSuffix(r.URL.Path, img.layer.String()) || !down {
			return false
		}
		if served > 0 {
			http.Error(w, "gone", http.StatusBadGateway)
			return true
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		served, _ = w.Write(data[:cut])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	ref := serveHostile(t, h) + "/torn:1"
	s.refused(t, ref, "in trouble (502)")
	mu.Lock()
	down = false
	mu.Unlock()
	before := h.count()
	if _, err := s.ensure(t, ref, ""); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var asked []string
	for _, r := range h.seen[before:] {
		if strings.Contains(r, img.layer.String()) {
			asked = append(asked, r)
		}
	}
	var from int
	if len(asked) != 1 || !strings.Contains(asked[0], "bytes=") {
		t.Fatalf("for the layer it asked %q; want the rest, once", asked)
	}
	if _, err := fmt.Sscanf(asked[0][strings.Index(asked[0], "bytes="):], "bytes=%d-", &from); err != nil || from < cut*9/10 || from > cut {
		t.Errorf("it asked for what is after %d; %d had come", from, cut)
	}
	t.Logf("of %d bytes the second pull fetched %d", len(data), len(data)-from)
}

// abandoned: when nobody wants an image any more, its pull ends.
func (s *shelf) abandoned(t *testing.T) {
	img := imageOf(t, goarch, 1<<20, nil)
	began, ended := make(chan struct{}), make(chan struct{})
	h := &hostile{image: img}
	var once, over sync.Once
	h.first = func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, img.layer.String()) {
			return false
		}
		once.Do(func() { close(began) })
		<-r.Context().Done()
		over.Do(func() { close(ended) })
		return true
	}
	ref := serveHostile(t, h) + "/abandoned:1"
	var wg sync.WaitGroup
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wg.Go(func() {
			if _, err := s.driver.EnsureImage(ctx, ref, "", nil); err == nil {
				t.Error("it was taken")
			}
		})
		wg.Go(func() {
			<-began
			cancel()
		})
	}
	wg.Wait()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the pull goes on")
	}
}

func (s *shelf) platforms(t *testing.T) {
	other := imageOf(t, "s390x", 1000, nil)
	h := &hostile{image: indexOf(t, map[string]*testImage{"s390x": other, "ppc64le": imageOf(t, "ppc64le", 1000, nil)})}
	s.refused(t, serveHostile(t, h)+"/foreign:1", "it is there for linux/ppc64le, linux/s390x, and this node is linux/"+goarch)
	alone := &hostile{image: other}
	s.refused(t, serveHostile(t, alone)+"/foreign:1", "it is there for linux/s390x, and this node is linux/"+goarch)
}

// hostile registries are found out, in bounded time, and named for what they do.
func (s *shelf) hostile(t *testing.T) {
	for name := range s.hostiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := s.hostiles(t)[name] // with content of its own
			h := &hostile{image: tt.image, first: tt.first}
			ref := serveHostile(t, h) + "/hostile:1"
			begun := time.Now()
			s.refused(t, ref, tt.want...)
			if d := time.Since(begun); d > time.Minute {
				t.Errorf("it took %s", d)
			}
			if tt.first == nil {
				return
			}
			// What came of it is not in the way of a registry that is mended.
			h.mu.Lock()
			h.first = nil
			h.mu.Unlock()
			if got, err := s.ensure(t, ref, ""); err != nil || got != tt.image.digest().String() {
				t.Errorf("mended: %s, %v", got, err)
			}
		})
	}
}

type hostileCase struct {
	image *testImage
	first func(http.ResponseWriter, *http.Request) bool
	want  []string
}

func (s *shelf) hostiles(t *testing.T) map[string]hostileCase {
	img := imageOf(t, goarch, 200<<10, nil)
	layer := img.blobs[img.layer]
	forLayer := func(r *http.Request) bool {
		return r.Method == "GET" && strings.HasSuffix(r.URL.Path, img.layer.String())
	}
	forManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			fmt.Fprintf(w, "<html>\x1b[31m%s", strings.Repeat("no", 1000))
			return true
		}
	}
	huge := &testImage{mediaType: img.mediaType, blobs: img.blobs, layer: img.layer,
		manifest: bytes.Replace(img.manifest, fmt.Appendf(nil, `"size":%d`, len(layer)), []byte(`"size":9000000000000`), 1)}
	negative := &testImage{mediaType: img.mediaType, blobs: img.blobs, layer: img.layer,
		manifest: bytes.Replace(img.manifest, fmt.Appendf(nil, `"size":%d`, len(layer)), []byte(`"size":-5`), 1)}
	short := &testImage{mediaType: img.mediaType, blobs: img.blobs, layer: img.layer,
		manifest: bytes.Replace(img.manifest, fmt.Appendf(nil, `"size":%d`, len(layer)), fmt.Appendf(nil, `"size":%d`, len(layer)-7), 1)}
	many := &testImage{mediaType: img.mediaType, blobs: img.blobs, layer: img.layer,
		manifest: bytes.Replace(img.manifest, []byte(`"layers":[`), []byte(`"layers":[`+strings.Repeat(fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d},`, ocispec.MediaTypeImageLayerGzip, img.layer, len(layer)), 300)), 1)}
	return map[string]hostileCase{
		"hangs with the manifest": {img, func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, []string{"stopped sending"}},
		"hangs in a layer": {img, func(w http.ResponseWriter, r *http.Request) bool {
			if !forLayer(r) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			_, _ = w.Write(layer[:100])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, []string{"stopped sending", "goes on from there"}},
		"other content": {img, func(w http.ResponseWriter, r *http.Request) bool {
			if !forLayer(r) {
				return false
			}
			_, _ = w.Write(bytes.Repeat([]byte("x"), len(layer)))
			return true
		}, []string{"not what its digest and size say"}},
		"other manifest": {img, func(w http.ResponseWriter, r *http.Request) bool {
			if !forManifest(r) || r.Method == "HEAD" {
				return false
			}
			w.Header().Set("Content-Type", img.mediaType)
			_, _ = w.Write(bytes.ToUpper(img.manifest))
			return true
		}, []string{"not what its digest and size say"}},
		"more than it said": {short, nil, []string{"not what its digest and size say"}},
		"a layer of 9 TB":   {huge, nil, []string{"9000000000000 bytes", "--max-image-size"}},
		"a negative layer":  {negative, nil, []string{"-5 bytes"}},
		"300 layers":        {many, nil, []string{"301 layers"}},
		"a manifest of 1 GB": {img, func(w http.ResponseWriter, r *http.Request) bool {
			if !forManifest(r) {
				return false
			}
			w.Header().Set("Content-Type", img.mediaType)
			w.Header().Set("Content-Length", "1000000000")
			w.Header().Set("Docker-Content-Digest", img.digest().String())
			return r.Method == "HEAD"
		}, []string{"larger than the 4194304 bytes"}},
		"a manifest without end": {img, func(w http.ResponseWriter, r *http.Request) bool {
			if !forManifest(r) {
				return false
			}
			w.Header().Set("Content-Type", img.mediaType)
			if r.Method == "GET" {
				for block := make([]byte, 1<<20); r.Context().Err() == nil; {
					if _, err := w.Write(block); err != nil {
						break
					}
				}
			}
			return true
		}, []string{"without end"}},
		"no manifest":      {img, func(w http.ResponseWriter, r *http.Request) bool { _, _ = io.WriteString(w, "hello"); return true }, nil},
		"401":              {img, status(401), []string{"wants a login (401)"}},
		"401, basic":       {img, status(401, "WWW-Authenticate", `Basic realm="x"`), []string{"wants a login (401)"}},
		"403":              {img, status(403), []string{"does not allow it (403)", "config.json"}},
		"404":              {img, status(404), []string{"not there (404)"}},
		"500":              {img, status(500), []string{"in trouble (500)"}},
		"429 for ever":     {img, status(429), []string{"limits how often", "mirror"}},
		"429 for a day":    {img, status(429, "Retry-After", "86400"), []string{"limits how often"}},
		"a realm in space": {img, status(401, "WWW-Authenticate", `Bearer realm="http://192.0.2.1/token",service="x"`), []string{"without TLS", "192.0.2.1"}},
		"in circles": {img, func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}, []string{"ten addresses"}},
	}
}

func (s *shelf) waits(t *testing.T) {
	var mu sync.Mutex
	left := 1
	h := &hostile{image: imageOf(t, goarch, 1000, nil), first: func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if left == 0 || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		left--
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}}
	var told []string
	ref := serveHostile(t, h) + "/waits:1"
	begun := time.Now()
	if _, err := s.driver.EnsureImage(t.Context(), ref, "", func(stage string, _, _ int64) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, stage)
	}); err != nil {
		t.Fatal(err)
	}
	if time.Since(begun) < time.Second {
		t.Error("it did not wait")
	}
	if !slices.ContainsFunc(told, func(s string) bool { return strings.HasPrefix(s, "wait 1s, as 127.0.0.1:") }) {
		t.Errorf("told %q", told)
	}
}

// credentialsStay: what one registry is told goes to no other, not even one
// that it leads to.
func (s *shelf) credentialsStay(t *testing.T) {
	img := imageOf(t, goarch, 1000, nil)
	var mu sync.Mutex
	var leaked []string
	other := &hostile{image: img, first: func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		for k, v := range r.Header {
			if k == "Authorization" || strings.Contains(strings.Join(v, " "), realSecret) {
				leaked = append(leaked, k)
			}
		}
		return false
	}}
	elsewhere := serveHostile(t, other)
	h := &hostile{image: img, first: func(w http.ResponseWriter, r *http.Request) bool {
		if user, secret, _ := r.BasicAuth(); user != realUser || secret != realSecret {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://"+elsewhere+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}}
	host := serveHostile(t, h)
	s.settings(t, "config.json", fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, host, realUser, realSecret), 0o600)
	if _, err := s.ensure(t, host+"/led:1", ""); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(leaked) > 0 || other.count("GET", "/blobs/") == 0 {
		t.Errorf("the other host was told %q, in %d requests for blobs", leaked, other.count("GET", "/blobs/"))
	}

	// A registry that sends back what it was told gets it into no message.
	echo := &hostile{image: img, first: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		_, secret, _ := r.BasicAuth()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q,"detail":%q}]}`, secret, r.Header.Get("Authorization"))
		return true
	}}
	host = serveHostile(t, echo)
	s.settings(t, "config.json", fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, host, realUser, realSecret), 0o600)
	s.refused(t, host+"/echo:1", "echo:1")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// bomb: a layer of a few hundred kilobytes that unpacks to more than an image
// may have.
func (s *shelf) bomb(t *testing.T) {
	img := imageOf(t, goarch, 3*shelfLimit, zeros{})
	ref := serveHostile(t, &hostile{image: img}) + "/bomb:1"
	s.refused(t, ref, "unpacked it takes more than the 64 MiB that --max-image-size allows")
	if s.has(t, img.layer) {
		t.Error("its layer is still there")
	}
	service := s.driver.client.SnapshotService("overlayfs")
	if used, err := unpackedSize(namespaces.WithNamespace(t.Context(), s.cfg.namespace()), service, chainOf(t, img)); err != nil || used > 0 {
		t.Errorf("%d bytes of it are still unpacked: %v", used, err)
	}
}

func chainOf(t *testing.T, img *testImage) map[string]bool {
	t.Helper()
	for _, data := range img.blobs {
		if _, rest, ok := strings.Cut(string(data), `"diff_ids":["`); ok {
			id, _, _ := strings.Cut(rest, `"`)
			return map[string]bool{id: true}
		}
	}
	t.Fatal("the image has no layers")
	return nil
}

// collect: the disk is over the high mark. Unused images go, the longest
// unused first, until it is at the low mark; what is in use stays whatever the
// disk is like.
func (s *shelf) collect(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), s.cfg.namespace())
	refs := map[string]string{}
	images := map[string]*testImage{}
	names := []string{"oldest", "older", "of-a-container", "of-an-assignment", "newest"}
	for i, name := range names {
		images[name] = imageOf(t, goarch, 1000, nil)
		refs[name] = serveHostile(t, &hostile{image: images[name]}) + "/" + name + ":1"
		if _, err := s.ensure(t, refs[name], ""); err != nil {
			t.Fatal(err)
		}
		s.driver.images.mu.Lock()
		s.driver.images.used[refs[name]] = time.Now().Add(-time.Duration(len(names)-i) * time.Hour)
		s.driver.images.mu.Unlock()
	}
	if _, err := s.ensure(t, "toolbox", ""); err != nil {
		t.Fatal(err)
	}
	// All else that lies there was used just now.
	box := s.driver.client.ContainerService()
	if _, err := box.Create(ctx, containers.Container{ID: "holds-an-image", Image: refs["of-a-container"], Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = box.Delete(namespaces.WithNamespace(context.Background(), s.cfg.namespace()), "holds-an-image")
	})
	wanted := func() []string { return []string{refs["of-an-assignment"], "toolbox"} }
	gone := func() (out []string) {
		for _, name := range names {
			_, err := s.driver.client.GetImage(ctx, refs[name])
			if there := s.has(t, images[name].layer); there != (err == nil) {
				t.Errorf("%s: its layer is there: %v, its name: %v", name, there, err)
			}
			if err != nil {
				out = append(out, name)
			}
		}
		return out
	}
	full := func(level func(removed int) int) collected {
		t.Helper()
		s.driver.used = func() (int, error) { return level(len(gone())), nil }
		defer func() { s.driver.used = s.driver.diskUsed }()
		c, err := s.driver.collectImages(ctx, wanted, false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	full(func(int) int { return 85 })
	if g := gone(); len(g) > 0 {
		t.Fatalf("at the high mark %q went", g)
	}
	c := full(func(n int) int { return 86 - 6*n })
	if g := gone(); !slices.Equal(g, []string{"oldest"}) || c.after != 80 {
		t.Errorf("%q went; want the longest unused, and no more than is needed", g)
	}
	full(func(int) int { return 99 })
	if g := gone(); !slices.Equal(g, []string{"oldest", "older", "newest"}) {
		t.Errorf("on a full disk %q went; want all but what is in use", g)
	}
	if _, err := s.driver.client.GetImage(ctx, "carried.redoubt/toolbox:1"); err != nil {
		t.Errorf("the carried image: %v", err)
	}
	// One that is wanted again is there again.
	if _, err := s.ensure(t, refs["newest"], ""); err != nil {
		t.Error(err)
	}
}

// collectTorn: what torn pulls left goes before any image does.
func (s *shelf) collectTorn(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), s.cfg.namespace())
	img := imageOf(t, goarch, 1<<20, nil)
	h := &hostile{image: img, first: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, img.layer.String()) {
			return false
		}
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		data := img.blobs[img.layer]
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		panic(http.ErrAbortHandler)
	}}
	s.refused(t, serveHostile(t, h)+"/left:1")
	held := func() (int, int) {
		active, err := s.driver.client.ContentStore().ListStatuses(ctx)
		if err != nil {
			t.Fatal(err)
		}
		list, err := s.driver.client.LeasesService().List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, l := range list {
			if strings.HasPrefix(l.ID, pullLeases) {
				n++
				if l.Labels["containerd.io/gc.expire"] == "" {
					t.Errorf("lease %s never ends", l.ID)
				}
			}
		}
		return len(active), n
	}
	if parts, leases := held(); parts == 0 || leases == 0 {
		t.Fatalf("a torn pull left %d parts and %d leases", parts, leases)
	}
	s.driver.used = func() (int, error) { return 99, nil }
	defer func() { s.driver.used = s.driver.diskUsed }()
	if _, err := s.driver.collectImages(ctx, func() []string { return nil }, false); err != nil {
		t.Fatal(err)
	}
	if parts, leases := held(); parts > 0 || leases > 0 {
		t.Errorf("%d parts and %d leases are left", parts, leases)
	}
}
