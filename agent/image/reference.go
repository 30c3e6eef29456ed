// Package image says what an image reference means and reads OCI layouts. It
// knows no registry and no container runtime; agent/containerd fetches.
//
// A reference is one of
//
//	carried.redoubt/toolbox:1    an archive that the agent carries; "toolbox" and
//	                             "canary" alone mean those; never looked up anywhere
//	oci:/absolute/dir[:tag]      an OCI layout on the node
//	[host[:port]/]name[:tag|@digest]   a registry; without a host docker.io
//
// All values are pure and safe for concurrent use.
package image

import (
	"fmt"
	"net"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Kind is where an image comes from.
type Kind uint8

const (
	Registry Kind = iota + 1
	Layout
	Carried
)

// CarriedHost is the name that no registry can have: it is no domain.
const CarriedHost = "carried.redoubt"

var carriedNames = map[string]string{
	"toolbox": CarriedHost + "/toolbox:1",
	"canary":  CarriedHost + "/canary:1",
}

// Reference is a parsed image reference.
type Reference struct {
	Kind Kind
	// Name is the whole reference in its canonical form; two references that
	// mean the same have the same name.
	Name string
	Host string // of a registry, with its port
	Dir  string // of a layout
	Tag  string // of a registry image or layout; a layout's may be empty
	// Digest pins a registry image; empty otherwise.
	Digest digest.Digest
}

var (
	component = pattern(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tagRe     = pattern(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hostRe    = pattern(`^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$`)
)

// pattern is an expression that is compiled when it is first asked: every start of
// the program would pay for all of them.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// Parse reads a reference as a person writes it.
func Parse(s string) (Reference, error) {
	ref, err := parse(s)
	if err != nil {
		if strings.Contains(s, "@") && !strings.Contains(s, "@sha") {
			// What stands before an @ may be a password.
			return Reference{}, fmt.Errorf("image reference %q: %w", "…@"+clip(s[strings.LastIndexByte(s, '@')+1:]), err)
		}
		return Reference{}, fmt.Errorf("image reference %q: %w", clip(s), err)
	}
	return ref, nil
}

// clip shortens what an error repeats.
func clip(s string) string {
	const most = 100
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

func parse(s string) (Reference, error) {
	if s == "" {
		return Reference{}, fmt.Errorf("it is empty")
	}
	if len(s) > 512 {
		return Reference{}, fmt.Errorf("it is longer than 512 characters")
	}
	if rest, ok := strings.CutPrefix(s, "oci:"); ok {
		return parseLayout(rest)
	}
	if i := strings.Index(s, "://"); i >= 0 {
		return Reference{}, fmt.Errorf("it is a URL; leave out %q", clip(s[:i+3]))
	}
	if full, ok := carriedNames[s]; ok {
		s = full
	}
	name, dgst := s, digest.Digest("")
	if before, after, ok := strings.Cut(s, "@"); ok {
		name, dgst = before, digest.Digest(after)
		if err := dgst.Validate(); err != nil {
			if strings.ContainsAny(after, "/") {
				return Reference{}, fmt.Errorf("credentials do not belong into a reference; give them to the node")
			}
			return Reference{}, fmt.Errorf("digest %q: %w", clip(after), err)
		}
	}
	tag := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
		if !tagRe().MatchString(tag) {
			return Reference{}, fmt.Errorf("tag %q is not 1 to 128 of letters, digits, '_', '.' and '-'", clip(tag))
		}
	}
	host, repo, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(host, ".:[") && host != "localhost" {
		host, repo = "docker.io", name
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	if !hostRe().MatchString(host) || !portInRange(host) {
		return Reference{}, fmt.Errorf("registry host %q is not a host name with an optional port", clip(host))
	}
	for _, c := range strings.Split(repo, "/") {
		if !component().MatchString(c) {
			return Reference{}, fmt.Errorf("name %q is not lower case letters, digits and single separators", clip(repo))
		}
	}
	if tag == "" && dgst == "" {
		tag = "latest"
	}
	ref := Reference{Kind: Registry, Host: host, Tag: tag, Digest: dgst, Name: host + "/" + repo}
	if dgst != "" {
		ref.Name += "@" + dgst.String() // the digest decides; the tag is only a remark
	} else {
		ref.Name += ":" + tag
	}
	if host == CarriedHost {
		ref.Kind, ref.Host = Carried, ""
	}
	return ref, nil
}

func parseLayout(s string) (Reference, error) {
	dir, tag := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		dir, tag = s[:i], s[i+1:]
		if !tagRe().MatchString(tag) {
			return Reference{}, fmt.Errorf("tag %q is not 1 to 128 of letters, digits, '_', '.' and '-'", clip(tag))
		}
	}
	if !path.IsAbs(dir) {
		return Reference{}, fmt.Errorf("the directory of an OCI layout must be absolute")
	}
	dir = path.Clean(dir)
	ref := Reference{Kind: Layout, Dir: dir, Tag: tag, Name: "oci:" + dir}
	if tag != "" {
		ref.Name += ":" + tag
	}
	return ref, nil
}

func portInRange(host string) bool {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.HasSuffix(host, "]") {
		return true
	}
	n, err := strconv.ParseUint(host[i+1:], 10, 16)
	return err == nil && n > 0
}

// Loopback tells whether a registry host, with or without port, is this
// machine: nobody else can listen in on it.
func Loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
