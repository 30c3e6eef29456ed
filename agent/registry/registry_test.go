package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The secret that must turn up nowhere.
const canary = "c4nary-s3cret"

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func silent(t *testing.T, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), canary) {
		t.Errorf("an error holds the secret: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	old := helperPath
	t.Cleanup(func() { helperPath = old })
	helperPath = filepath.Join(dir, "bin")
	script := func(name, body string) {
		write(t, filepath.Join(helperPath, "docker-credential-"+name), "#!/bin/sh\nPATH=/usr/bin:/bin\n"+body+"\n", 0o755)
	}
	script("good", `read server; [ "$1" = get ] && [ -z "$CANARY_ENV" ] && echo "{\"Username\":\"$server\",\"Secret\":\"`+canary+`\"}"`)
	script("token", `echo '{"Username":"<token>","Secret":"`+canary+`"}'`)
	script("none", `echo "credentials not found in native keychain"; exit 1`)
	script("fails", `echo "`+canary+`"; echo "`+canary+`" >&2; exit 3`)
	script("chatters", `while :; do echo "`+canary+canary+canary+canary+`"; done`)
	script("babbles", `echo "`+canary+`"`)
	t.Setenv("CANARY_ENV", canary)
	auth := `"auth":"dTpjNG5hcnktczNjcmV0"` // u:c4nary-s3cret
	for name, tt := range map[string]struct {
		conf, host string
		user       string
		secret     bool
		want       string // part of the error
	}{
		"auth":                    {`{"auths":{"r.test:5000":{` + auth + `}}}`, "r.test:5000", "u", true, ""},
		"with scheme and path":    {`{"auths":{"https://r.test/v2/":{` + auth + `}}}`, "r.test", "u", true, ""},
		"another port":            {`{"auths":{"r.test:5000":{` + auth + `}}}`, "r.test:5001", "", false, ""},
		"another host":            {`{"auths":{"r.test":{` + auth + `}}}`, "r.test.evil.test", "", false, ""},
		"the hub":                 {`{"auths":{"https://index.docker.io/v1/":{` + auth + `}}}`, "registry-1.docker.io", "u", true, ""},
		"user and password":       {`{"auths":{"r.test":{"username":"u","password":"` + canary + `"}}}`, "r.test", "u", true, ""},
		"identity token":          {`{"auths":{"r.test":{"identitytoken":"` + canary + `"}}}`, "r.test", "", true, ""},
		"helper":                  {`{"credHelpers":{"r.test":"good"}}`, "r.test", "r.test", true, ""},
		"helper of the hub":       {`{"credHelpers":{"docker.io":"good"}}`, "registry-1.docker.io", dockerHub, true, ""},
		"helper's token":          {`{"credHelpers":{"r.test":"token"}}`, "r.test", "", true, ""},
		"store":                   {`{"credsStore":"good"}`, "any.test", "any.test", true, ""},
		"helper has none":         {`{"credHelpers":{"r.test":"none"}}`, "r.test", "", false, ""},
		"helper fails":            {`{"credHelpers":{"r.test":"fails"}}`, "r.test", "", false, "exit status 3"},
		"helper chatters":         {`{"credHelpers":{"r.test":"chatters"}}`, "r.test", "", false, "printed more than 65536 bytes"},
		"helper babbles":          {`{"credHelpers":{"r.test":"babbles"}}`, "r.test", "", false, "did not answer"},
		"helper is not there":     {`{"credHelpers":{"r.test":"absent"}}`, "r.test", "", false, "install it there"},
		"helper with a path":      {`{"credHelpers":{"r.test":"../../../bin/sh"}}`, "r.test", "", false, "a helper's name is"},
		"no JSON":                 {`{"auths":{"r.test":{"auth":"` + canary + `"`, "r.test", "", false, "is no JSON"},
		"wrong type":              {`{"auths":"` + canary + `"}`, "r.test", "", false, "wrong type"},
		"auth is not base64":      {`{"auths":{"r.test":{"auth":"` + canary + `"}}}`, "r.test", "", false, "not base64"},
		"host leaves the folder":  {`{}`, "../..", "", false, ""},
		"too large":               {strings.Repeat(" ", maxFile+1), "r.test", "", false, "larger than"},
		"the auth before a store": {`{"auths":{"r.test":{` + auth + `}},"credsStore":"fails"}`, "r.test", "u", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir(t.TempDir())
			write(t, d.path("config.json"), tt.conf, 0o600)
			c, err := d.Credentials(t.Context(), tt.host)
			silent(t, err)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %v, want one with %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.User != tt.user || (c.Secret == canary) != tt.secret || !tt.secret && c.From != "" {
				t.Errorf("user %q, secret given %v, from %q", c.User, c.Secret == canary, c.From)
			}
			if text := fmt.Sprintf("%v %+v %#v %s", c, c, c, c); strings.Contains(text, canary) {
				t.Errorf("printed: %s", text)
			}
		})
	}
}

func TestHelperThatHangs(t *testing.T) {
	old := helperPath
	t.Cleanup(func() { helperPath = old })
	helperPath = t.TempDir()
	write(t, helperPath+"/docker-credential-hangs", "#!/bin/sh\n/bin/sleep 600 & /bin/sleep 600\n", 0o755)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := ask(ctx, "hangs", "r.test")
	if err == nil || !strings.Contains(err.Error(), "did not answer for r.test") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begun); d > 15*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestFilesOfOthersAreRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		file, text string
		mode       os.FileMode
		want       string
	}{
		"readable credentials":      {"config.json", `{"auths":{"r.test":{"auth":"eDp5"}}}`, 0o644, "chmod 600 "},
		"readable by a group":       {"config.json", `{}`, 0o640, "chmod 600 "},
		"credentials of a host":     {"r.test/config.json", `{}`, 0o604, "chmod 600 "},
		"hosts.toml of everyone":    {"r.test/hosts.toml", ``, 0o666, "chmod go-w "},
		"a readable header":         {"r.test/hosts.toml", "[host.\"https://m.test\".header]\nx-token = \"" + canary + "\"\n", 0o644, "chmod 600 "},
		"a readable key":            {"r.test/client.key", canary, 0o644, "chmod 600 "},
		"a root that others change": {"r.test/ca.pem", "", 0o664, "chmod go-w "},
		"no TOML":                   {"r.test/hosts.toml", "server = \"" + canary + "\n", 0o644, "line 1"},
		"fine":                      {"r.test/hosts.toml", "server = \"https://r.test\"\n", 0o644, ""},
		"a header, private":         {"r.test/hosts.toml", "[header]\nx-token = \"" + canary + "\"\n", 0o600, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir(t.TempDir())
			write(t, d.path(tt.file), tt.text, tt.mode)
			_, hostErr := d.Host("r.test")
			_, credErr := d.Credentials(t.Context(), "r.test")
			for what, err := range map[string]error{"check": d.Check(), "use": errors.Join(hostErr, credErr)} {
				silent(t, err)
				switch {
				case tt.want == "" && err != nil:
					t.Errorf("%s: %v", what, err)
				case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("%s: error %v, want one with %q", what, err, tt.want)
				}
			}
		})
	}
	if err := Dir("/nonexistent").Check(); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestClean(t *testing.T) {
	c := Credentials{User: "u", Secret: canary, From: "x"}
	got := Clean("get https://s3.test/a?X-Signature="+canary+"&b=1: no\n\x1b[31m"+canary+" dTpjNG5hcnktczNjcmV0\u202e", c)
	if strings.ContainsAny(got, "\n\x1b\u202e?") || strings.Contains(got, canary) || strings.Contains(got, "dTpjNG5h") {
		t.Errorf("%q", got)
	}
	if n := len(Clean(strings.Repeat("x", 10000))); n > 500 {
		t.Errorf("%d bytes", n)
	}
}

// answers is a transport that needs no network.
type answers func(*http.Request) *http.Response

func (f answers) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

func answer(code int, header http.Header, body io.Reader) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(body)}
}

func TestWaitsAsItIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		var told []time.Duration
		tr := NewTraffic(Limits{}, func(_ string, d time.Duration) { told = append(told, d) })
		client := http.Client{Transport: tr.Over(answers(func(*http.Request) *http.Response {
			if tries++; tries <= 2 {
				return answer(429, http.Header{"Retry-After": {"7"}}, strings.NewReader(""))
			}
			return answer(200, nil, strings.NewReader("ok"))
		}), func(string) bool { return false })}
		begun := time.Now()
		resp, err := client.Get("https://r.test/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if d := time.Since(begun); d != 14*time.Second || tries != 3 || len(told) != 2 {
			t.Errorf("waited %s, asked %d times, told %v", d, tries, told)
		}
	})
}

func TestWaitsNotForEver(t *testing.T) {
	for _, after := range []string{"", "0", "86400", "999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			tr := NewTraffic(Limits{}, nil)
			client := http.Client{Transport: tr.Over(answers(func(*http.Request) *http.Response {
				tries++
				return answer(429, http.Header{"Retry-After": {after}}, strings.NewReader(""))
			}), func(string) bool { return false })}
			begun := time.Now()
			_, err := client.Get("https://r.test/v2/")
			if !errors.Is(err, ErrLimited) || time.Since(begun) > 3*time.Minute || tries > 12 {
				t.Errorf("Retry-After %q: asked %d times in %s: %v", after, tries, time.Since(begun), err)
			}
		})
	}
}

// drip sends a byte now and then, for ever.
type drip struct {
	ctx   context.Context
	every time.Duration
}

func (d drip) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(d.every):
	}
	p[0] = 'x'
	return 1, nil
}

func TestStalls(t *testing.T) {
	for name, every := range map[string]time.Duration{"silent": 10 * time.Hour, "dripping": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				tr := NewTraffic(Limits{}, nil)
				client := http.Client{Transport: tr.Over(answers(func(r *http.Request) *http.Response {
					return answer(200, nil, drip{r.Context(), every})
				}), func(string) bool { return false })}
				req, _ := http.NewRequestWithContext(ctx, "GET", "https://r.test/v2/a/blobs/x", nil)
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				go func() { _, _ = io.Copy(io.Discard, resp.Body); resp.Body.Close() }()
				begun := time.Now()
				if err := tr.Watch(ctx); !errors.Is(err, ErrStalled) {
					t.Errorf("watch: %v", err)
				}
				if d := time.Since(begun); d < time.Minute || d > 80*time.Second {
					t.Errorf("after %s", d)
				}
				cancel()
			})
		})
	}
}

func TestSlowIsNotStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		tr := NewTraffic(Limits{}, nil)
		client := http.Client{Transport: tr.Over(answers(func(r *http.Request) *http.Response {
			return answer(200, nil, drip{r.Context(), 3 * time.Millisecond}) // 20 KiB a minute
		}), func(string) bool { return false })}
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://r.test/v2/a/blobs/x", nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = io.CopyN(io.Discard, resp.Body, 100<<10)
			resp.Body.Close()
		}()
		if err := tr.Watch(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestDocumentsAreBounded(t *testing.T) {
	tr := NewTraffic(Limits{Document: 1 << 10}, nil)
	client := http.Client{Transport: tr.Over(answers(func(r *http.Request) *http.Response {
		return answer(200, nil, io.LimitReader(drip0{}, 1<<30))
	}), func(string) bool { return false })}
	for path, bounded := range map[string]bool{"/v2/a/manifests/1": true, "/token": true, "/v2/a/blobs/sha256:1": false} {
		resp, err := client.Get("https://r.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.CopyN(io.Discard, resp.Body, 1<<20)
		resp.Body.Close()
		if errors.Is(err, ErrDocument) != bounded {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
	}
}

type drip0 struct{}

func (drip0) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRedirects(t *testing.T) {
	for to, want := range map[string]error{
		"https://other.test/x": nil, "https://r.test:444/x": nil, "http://r.test/x": ErrPlain, "http://other.test/x": ErrPlain, "http://127.0.0.1/x": ErrPlain,
	} {
		var got http.Header
		tr := NewTraffic(Limits{}, nil)
		client := http.Client{CheckRedirect: Redirect, Transport: tr.Over(answers(func(r *http.Request) *http.Response {
			if r.URL.String() == to {
				got = r.Header
				return answer(200, nil, strings.NewReader(""))
			}
			return answer(307, http.Header{"Location": {to}}, strings.NewReader(""))
		}), func(string) bool { return true })}
		req, _ := http.NewRequest("GET", "https://r.test/v2/a/blobs/x", nil)
		req.SetBasicAuth("u", canary)
		req.Header.Set("X-Token", canary)
		req.Header.Set("Range", "bytes=5-")
		resp, err := client.Do(req)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", to, err, want)
		}
		if err == nil {
			resp.Body.Close()
		}
		if want == nil && (got.Get("Authorization") != "" || got.Get("X-Token") != "" || got.Get("Range") != "bytes=5-") {
			t.Errorf("%s was told %v", to, got)
		}
		if want != nil && got != nil {
			t.Errorf("%s was asked", to)
		}
	}
}

// A registry on TLS may not send a node to plain HTTP for its token either.
func TestPlainHTTPIsRefused(t *testing.T) {
	tr := NewTraffic(Limits{}, nil)
	client := http.Client{Transport: tr.Over(answers(func(*http.Request) *http.Response {
		return answer(200, nil, strings.NewReader(""))
	}), func(h string) bool { return h == "listed.test" })}
	for to, want := range map[string]error{"http://r.test/token": ErrPlain, "http://listed.test/token": nil, "https://r.test/token": nil} {
		resp, err := client.Get(to)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", to, err, want)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}
