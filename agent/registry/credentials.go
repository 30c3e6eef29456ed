package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Credentials is who the node is to a registry. It does not print.
type Credentials struct {
	// User is empty when Secret is an identity token.
	User, Secret string
	// From is the file or helper that they came from, for messages; it is set
	// only if there are any.
	From string
}

// String keeps the secret out of whatever prints c.
func (c Credentials) String() string { return "credentials from " + c.From }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// Helpers.
const (
	helperTime  = 20 * time.Second
	helperBytes = 64 << 10
	// tokenUser is what a helper says in place of a user for an identity token.
	tokenUser = "<token>"
	// dockerHub is what docker calls docker.io in its files.
	dockerHub = "https://index.docker.io/v1/"
)

// helperPath is where helpers are looked for, whatever the agent's own PATH.
var helperPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// dockerConfig is what is read of docker's config.json.
type dockerConfig struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

func readCredentials(path string) (dockerConfig, error) {
	var c dockerConfig
	data, err := readOwned(path, true)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		// The error of package json may quote what it met.
		var at *json.SyntaxError
		if errors.As(err, &at) {
			return c, fmt.Errorf("%s is not docker's config.json: line %d is no JSON", path, 1+bytes.Count(data[:min(int(at.Offset), len(data))], []byte("\n")))
		}
		return c, fmt.Errorf("%s is not docker's config.json: a field has the wrong type", path)
	}
	return c, nil
}

// Credentials finds who the node is to host (host or host:port). Without any,
// and without an error, it is nobody in particular.
func (d Dir) Credentials(ctx context.Context, host string) (Credentials, error) {
	if d == "" || !plainName(host) {
		return Credentials{}, nil
	}
	var files []string
	for _, alias := range aliases(host) {
		for _, name := range hostNames(alias) {
			files = append(files, d.path(name, credentialsFile))
		}
	}
	for _, file := range append(files, d.path(credentialsFile)) {
		conf, err := readCredentials(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Credentials{}, err
		}
		c, err := conf.find(ctx, file, host)
		if err != nil || c.From != "" {
			return c, err
		}
	}
	return Credentials{}, nil
}

// aliases are the names under which people write a registry down.
func aliases(host string) []string {
	switch host {
	case "docker.io", "registry-1.docker.io", "index.docker.io":
		return []string{"docker.io", "registry-1.docker.io", "index.docker.io"}
	}
	return []string{host}
}

// same tells whether a key of docker's file means host.
func same(key, host string) bool {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	key, _, _ = strings.Cut(key, "/")
	for _, a := range aliases(host) {
		if strings.EqualFold(key, a) || strings.EqualFold(strings.TrimSuffix(key, ":443"), strings.TrimSuffix(a, ":443")) {
			return true
		}
	}
	return false
}

func (c dockerConfig) find(ctx context.Context, file, host string) (Credentials, error) {
	for key, helper := range c.CredHelpers {
		if same(key, host) {
			return ask(ctx, helper, host)
		}
	}
	for key, a := range c.Auths {
		if !same(key, host) {
			continue
		}
		switch {
		case a.IdentityToken != "":
			return Credentials{Secret: a.IdentityToken, From: file}, nil
		case a.Password != "":
			return Credentials{User: a.Username, Secret: a.Password, From: file}, nil
		case a.Auth != "":
			data, err := base64.StdEncoding.DecodeString(a.Auth)
			user, secret, ok := strings.Cut(string(data), ":")
			if err != nil || !ok {
				return Credentials{}, fmt.Errorf("%s: the auth of %s is not base64 of user:password", file, host)
			}
			return Credentials{User: user, Secret: strings.TrimRight(secret, "\x00"), From: file}, nil
		}
	}
	if c.CredsStore != "" {
		return ask(ctx, c.CredsStore, host)
	}
	return Credentials{}, nil
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// ask runs docker-credential-NAME, as docker does. Nothing that it prints goes
// into an error.
func ask(ctx context.Context, name, host string) (Credentials, error) {
	if !helperName.MatchString(name) {
		return Credentials{}, fmt.Errorf("credential helper %q: a helper's name is letters, digits, '_', '.' and '-'", name)
	}
	program, err := findHelper("docker-credential-" + name)
	if err != nil {
		return Credentials{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	server := host
	if len(aliases(host)) > 1 {
		server = dockerHub
	}
	out := &bounded{limit: helperBytes, stop: cancel}
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin, cmd.Stdout, cmd.Dir = strings.NewReader(server), out, "/"
	cmd.Env = []string{"PATH=" + helperPath, "HOME=/root", "LANG=C.UTF-8"}
	// What the helper starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	switch {
	case out.over:
		return Credentials{}, fmt.Errorf("credential helper %s printed more than %d bytes", program, helperBytes)
	case ctx.Err() != nil:
		return Credentials{}, fmt.Errorf("credential helper %s did not answer for %s within %s", program, host, helperTime)
	case err != nil && strings.Contains(out.got.String(), "credentials not found"):
		return Credentials{}, nil
	case err != nil:
		return Credentials{}, fmt.Errorf("credential helper %s failed for %s (%w): try `echo %s | %s get` as root", program, host, err, server, program)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.got.Bytes(), &answer) != nil || answer.Secret == "" {
		return Credentials{}, fmt.Errorf("credential helper %s did not answer for %s as such helpers do", program, host)
	}
	if answer.Username == tokenUser {
		answer.Username = ""
	}
	return Credentials{User: answer.Username, Secret: answer.Secret, From: program}, nil
}

func findHelper(program string) (string, error) {
	for _, dir := range filepath.SplitList(helperPath) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, private(path, info, false)
		}
	}
	return "", fmt.Errorf("credential helper %s is in none of %s: install it there", program, helperPath)
}

// bounded keeps the first limit bytes and refuses more.
type bounded struct {
	got   bytes.Buffer // a field, or io.Copy would go past Write
	limit int
	stop  func() // whoever writes
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.got.Len()+len(p) > b.limit {
		b.over = true
		b.stop()
		return 0, fmt.Errorf("more than %d bytes", b.limit)
	}
	return b.got.Write(p)
}

var query = regexp.MustCompile(`\?[^\s"']*`)

// Clean makes a text of a registry's or of a library fit to be shown: no
// secret of cs, no query of an address, no control characters, one line of
// bounded length.
func Clean(text string, cs ...Credentials) string {
	for _, c := range cs {
		for _, s := range []string{
			c.Secret, url.QueryEscape(c.Secret),
			base64.StdEncoding.EncodeToString([]byte(c.User + ":" + c.Secret)),
		} {
			if c.Secret != "" {
				text = strings.ReplaceAll(text, s, "(secret)")
			}
		}
	}
	text = query.ReplaceAllString(text, "")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	const most = 400
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
