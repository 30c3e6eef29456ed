package otlp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/sys/unix"
)

// ErrEnvironment is in errors of what OpenTelemetry's variables say.
var ErrEnvironment = errors.New("in OpenTelemetry's variables")

// maxHeaders bounds a file of headers, bytes.
const maxHeaders = 64 << 10

// target is where spans go, and what is shown there. Its headers are a secret.
type target struct {
	url     string // "": nowhere
	headers map[string]string
	roots   *x509.CertPool // nil: the host's
	own     []tls.Certificate
	timeout time.Duration
}

// target is what the configuration and the environment say together.
func (c Config) target() (t target, err error) {
	value := func(name string) (string, string) {
		for _, prefix := range []string{"OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"} {
			if v := strings.TrimSpace(c.Getenv(prefix + name)); v != "" {
				return v, prefix + name
			}
		}
		return "", ""
	}
	if c.Endpoint == "" {
		if strings.EqualFold(c.Getenv("OTEL_SDK_DISABLED"), "true") || c.Getenv("OTEL_TRACES_EXPORTER") == "none" {
			return t, nil
		}
		raw, name := value("ENDPOINT")
		if raw == "" {
			if c.HeadersFile != "" || c.Sample != nil {
				return t, errors.New("where traces go is not said: give --tracing-endpoint URL too")
			}
			return t, nil
		}
		if t.url, err = endpoint(raw, name != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); err != nil {
			return t, fmt.Errorf("%s: %w: %w", name, ErrEnvironment, err)
		}
	} else if t.url, err = endpoint(c.Endpoint, !hasPath(c.Endpoint)); err != nil {
		return t, fmt.Errorf("--tracing-endpoint: %w", err)
	}
	if v, name := value("PROTOCOL"); v == "grpc" && c.Endpoint == "" {
		return t, fmt.Errorf("%s=grpc: %w: traces are sent by http/protobuf only, to port 4318 of a collector", name, ErrEnvironment)
	}
	t.timeout = 10 * time.Second
	if v, name := value("TIMEOUT"); v != "" {
		ms, err := strconv.Atoi(v)
		if err != nil || ms <= 0 || ms > 60_000 {
			return t, fmt.Errorf("%s=%.20q: %w: it is none of 1 to 60000 milliseconds", name, v, ErrEnvironment)
		}
		t.timeout = time.Duration(ms) * time.Millisecond
	}
	if err := t.identity(value); err != nil {
		return t, err
	}
	if c.HeadersFile != "" {
		t.headers, err = headersOf(c.HeadersFile)
		return t, err
	}
	if v, name := value("HEADERS"); v != "" {
		if t.headers, err = headersFrom(v); err != nil {
			return t, fmt.Errorf("%s: %w: %w", name, ErrEnvironment, err)
		}
	}
	return t, nil
}

// identity reads the authorities that a collector is believed by, and what this
// host shows it.
func (t *target) identity(value func(string) (string, string)) error {
	if file, name := value("CERTIFICATE"); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%s: %w: %w", name, ErrEnvironment, err)
		}
		t.roots = x509.NewCertPool()
		if !t.roots.AppendCertsFromPEM(data) {
			return fmt.Errorf("%s: %w: %s holds no certificate", name, ErrEnvironment, file)
		}
	}
	cert, name := value("CLIENT_CERTIFICATE")
	key, _ := value("CLIENT_KEY")
	if cert == "" && key == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s and the key beside it: %w: %w", name, ErrEnvironment, err)
	}
	t.own = []tls.Certificate{pair}
	return nil
}

// endpoint checks a URL, and completes one that is the base of all signals.
func endpoint(raw string, base bool) (string, error) {
	const example = "it must be as https://collector.example:4318, or http:// at a loopback address"
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return "", fmt.Errorf("%.80q is no URL: %s", raw, example)
	}
	switch {
	case u.User != nil:
		return "", errors.New("a name and password do not belong into a URL: put an Authorization header into --tracing-headers-file")
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%.80q has a query or fragment: %s", raw, example)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return "", fmt.Errorf("%.80q would send what runs in the fleet over a network in plain text: use https://, or a collector on this host that passes it on", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%.80q is neither http nor https: %s", raw, example)
	}
	if base {
		u = u.JoinPath("v1", "traces")
	}
	return u.String(), nil
}

func hasPath(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Path != "" && u.Path != "/"
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// headersOf reads a file of lines "Name: value" that nobody else may read.
func headersOf(path string) (map[string]string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("--tracing-headers-file: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("--tracing-headers-file: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("--tracing-headers-file %s: it is no regular file", path)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("--tracing-headers-file %s: others than its owner may read or write it (mode %04o): chmod 600 it", path, fi.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxHeaders+1))
	if err != nil {
		return nil, fmt.Errorf("--tracing-headers-file %s: %w", path, err)
	}
	if len(data) > maxHeaders {
		return nil, fmt.Errorf("--tracing-headers-file %s: it has more than %d bytes", path, maxHeaders)
	}
	headers := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxHeaders)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, v, ok := strings.Cut(line, ":")
		if err := addHeader(headers, name, v); err != nil || !ok {
			return nil, fmt.Errorf("--tracing-headers-file %s: line %d is not as \"Name: value\"", path, n)
		}
	}
	return headers, nil
}

// headersFrom reads name=value,name=value, the values escaped as in URLs.
func headersFrom(list string) (map[string]string, error) {
	headers := map[string]string{}
	for i, pair := range strings.Split(list, ",") {
		name, v, ok := strings.Cut(pair, "=")
		plain, err := url.PathUnescape(v)
		if err == nil {
			err = addHeader(headers, name, plain)
		}
		if err != nil || !ok { // the value is nobody's to see
			return nil, fmt.Errorf("header %d of it is not as name=value", i+1)
		}
	}
	return headers, nil
}

func addHeader(to map[string]string, name, value string) error {
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
		return errors.New("no header")
	}
	to[name] = value
	return nil
}

// client follows no redirect: a collector must not send what it is shown
// elsewhere.
func (t target) client() *http.Client {
	return &http.Client{
		Timeout:       t.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.roots, Certificates: t.own},
			TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
			MaxIdleConnsPerHost: 1, MaxConnsPerHost: 2, MaxResponseHeaderBytes: maxAnswer, ForceAttemptHTTP2: true,
		},
	}
}
