package fleet

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Limits of probes. A probe that may take long holds a process on the node for
// as long.
const (
	MaxProbeDelay     = 3600 // seconds
	MaxProbePeriod    = 3600
	MaxProbeTimeout   = 60
	MaxProbeThreshold = 1000
	MaxProbeHeaders   = 16
	MaxHeaderLength   = 1 << 10
)

// Defaults of probes, those of Kubernetes.
const (
	DefaultProbePeriod  = 10 * time.Second
	DefaultProbeTimeout = time.Second
	DefaultProbeFailure = 3
)

// Probe asks a container how it is. Exactly one of Exec, HTTP, TCP and GRPC is
// set.
type Probe struct {
	Exec []string
	HTTP *HTTPProbe
	TCP  uint16
	GRPC *GRPCProbe

	InitialDelay, Period, Timeout time.Duration // whole seconds
	Success, Failure              int
}

// HTTPProbe is a GET request of the container's own address.
type HTTPProbe struct {
	Port    uint16
	Path    string
	Scheme  string // "HTTP" or "HTTPS"
	Headers []Header
}

// Header of an HTTP request.
type Header struct{ Name, Value string }

// GRPCProbe is a call of grpc.health.v1.
type GRPCProbe struct {
	Port    uint16
	Service string
}

func (p *Probe) clone() *Probe {
	if p == nil {
		return nil
	}
	c := *p
	c.Exec = slices.Clone(p.Exec)
	c.GRPC = clonePtr(p.GRPC)
	if c.HTTP = clonePtr(p.HTTP); c.HTTP != nil {
		c.HTTP.Headers = slices.Clone(p.HTTP.Headers)
	}
	return &c
}

// proto spells every default out; a port's name has become its number.
func (p *Probe) proto() *redoubtv1.Probe {
	if p == nil {
		return nil
	}
	u := func(n int) *uint32 { v := uint32(n); return &v }
	out := &redoubtv1.Probe{
		InitialDelaySeconds: u(int(p.InitialDelay / time.Second)), PeriodSeconds: u(int(p.Period / time.Second)),
		TimeoutSeconds: u(int(p.Timeout / time.Second)), SuccessThreshold: u(p.Success), FailureThreshold: u(p.Failure),
	}
	switch port := func(n uint16) string { return strconv.Itoa(int(n)) }; {
	case p.HTTP != nil:
		out.HttpGet = &redoubtv1.HTTPGetAction{Path: p.HTTP.Path, Port: port(p.HTTP.Port), Scheme: p.HTTP.Scheme}
		for _, h := range p.HTTP.Headers {
			out.HttpGet.HttpHeaders = append(out.HttpGet.HttpHeaders, &redoubtv1.HTTPHeader{Name: h.Name, Value: h.Value})
		}
	case p.GRPC != nil:
		out.Grpc = &redoubtv1.GRPCAction{Port: port(p.GRPC.Port), Service: p.GRPC.Service}
	case p.TCP != 0:
		out.TcpSocket = &redoubtv1.TCPSocketAction{Port: port(p.TCP)}
	default:
		out.Exec = &redoubtv1.ExecAction{Command: slices.Clone(p.Exec)}
	}
	return out
}

// probes reads the three. text is how much of MaxSpecText their commands use.
func (r *reader) probes(at string, p *redoubtv1.Container, c *Container, w Workload) (text int) {
	c.Startup = r.probe(at+".startupProbe", p.GetStartupProbe(), c.Ports, w, true, &text)
	c.Liveness = r.probe(at+".livenessProbe", p.GetLivenessProbe(), c.Ports, w, true, &text)
	c.Readiness = r.probe(at+".readinessProbe", p.GetReadinessProbe(), c.Ports, w, false, &text)
	if c.Readiness != nil && w.Kind == KindJob {
		r.fail(at+".readinessProbe", "is for a Service; nobody waits for a Job to be ready, but for its end")
	}
	return text
}

func (r *reader) probe(at string, p *redoubtv1.Probe, ports []Port, w Workload, once bool, text *int) *Probe {
	if p == nil {
		return nil
	}
	number := func(field string, v *uint32, def, low, high int64) int {
		if v == nil {
			return int(def)
		}
		r.between(at+"."+field, int64(*v), low, high)
		return int(*v)
	}
	seconds := func(field string, v *uint32, def time.Duration, low, high int64) time.Duration {
		return time.Duration(number(field, v, int64(def/time.Second), low, high)) * time.Second
	}
	out := &Probe{
		InitialDelay: seconds("initialDelaySeconds", p.InitialDelaySeconds, 0, 0, MaxProbeDelay),
		Period:       seconds("periodSeconds", p.PeriodSeconds, DefaultProbePeriod, 1, MaxProbePeriod),
		Timeout:      seconds("timeoutSeconds", p.TimeoutSeconds, DefaultProbeTimeout, 1, MaxProbeTimeout),
		Success:      number("successThreshold", p.SuccessThreshold, 1, 1, MaxProbeThreshold),
		Failure:      number("failureThreshold", p.FailureThreshold, DefaultProbeFailure, 1, MaxProbeThreshold),
	}
	if once && out.Success > 1 {
		r.fail(at+".successThreshold", "must be 1; more is for a readinessProbe")
	}
	var asked []string
	if e := p.GetExec(); e != nil {
		asked = append(asked, "exec")
		out.Exec = slices.Clone(e.GetCommand())
		if len(out.Exec) == 0 || out.Exec[0] == "" {
			r.fail(at+".exec.command", "is required: a program and its arguments, no shell line")
		}
		*text += r.arguments(at+".exec.command", out.Exec)
	}
	if h := p.GetHttpGet(); h != nil {
		asked = append(asked, "httpGet")
		out.HTTP = r.httpProbe(at+".httpGet", h, ports)
	}
	if t := p.GetTcpSocket(); t != nil {
		asked = append(asked, "tcpSocket")
		out.TCP = r.probedPort(at+".tcpSocket.port", t.GetPort(), ports)
	}
	if g := p.GetGrpc(); g != nil {
		asked = append(asked, "grpc")
		out.GRPC = &GRPCProbe{Port: r.probedPort(at+".grpc.port", g.GetPort(), ports), Service: g.GetService()}
		if len(g.GetService()) > MaxLabelLength || strings.ContainsFunc(g.GetService(), func(c rune) bool { return c <= ' ' || c > '~' }) {
			r.fail(at+".grpc.service", "%q is not a service's name: up to %d letters, digits, \".\" and the like", clip(g.GetService()), MaxLabelLength)
		}
	}
	switch {
	case len(asked) == 0:
		r.fail(at, "asks nothing: give exec, httpGet, tcpSocket or grpc")
	case len(asked) > 1:
		r.fail(at, "has %s; keep one", strings.Join(asked, " and "))
	case asked[0] != "exec" && w.Network == NetworkNone:
		r.fail(at+"."+asked[0], "cannot reach it with network none; use exec or set network: bridge")
	}
	return out
}

var headerPattern = pattern("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")

func (r *reader) httpProbe(at string, p *redoubtv1.HTTPGetAction, ports []Port) *HTTPProbe {
	h := &HTTPProbe{
		Port: r.probedPort(at+".port", p.GetPort(), ports), Path: oneWord(p.GetPath(), "/"),
		Scheme: r.word(at+".scheme", p.GetScheme(), "HTTP", SchemeWords),
	}
	switch {
	case len(h.Path) > MaxPathLength:
		r.fail(at+".path", "is %d bytes long, the limit is %d", len(h.Path), MaxPathLength)
	case h.Path[0] != '/':
		r.fail(at+".path", "%q must begin with /; host and port are the container's own", clip(h.Path))
	case strings.ContainsFunc(h.Path, func(c rune) bool { return c <= ' ' || c > '~' || c == '#' }):
		r.fail(at+".path", "%q is not the path of a URL: escape what is not plain ASCII", clip(h.Path))
	}
	if len(p.GetHttpHeaders()) > MaxProbeHeaders {
		r.fail(at+".httpHeaders", "has %d entries, the limit is %d", len(p.GetHttpHeaders()), MaxProbeHeaders)
		return h
	}
	for i, x := range p.GetHttpHeaders() {
		here := fmt.Sprintf("%s.httpHeaders[%d]", at, i)
		if !headerPattern().MatchString(x.GetName()) {
			r.fail(here+".name", "%q is not the name of a header", clip(x.GetName()))
		}
		switch {
		case len(x.GetValue()) > MaxHeaderLength:
			r.fail(here+".value", "is %d bytes long, the limit is %d", len(x.GetValue()), MaxHeaderLength)
		case strings.ContainsFunc(x.GetValue(), func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
			r.fail(here+".value", "has a control character in it")
		}
		h.Headers = append(h.Headers, Header{x.GetName(), x.GetValue()})
	}
	return h
}

// probedPort is a number, or the name of one of the container's ports.
func (r *reader) probedPort(at, s string, ports []Port) uint16 {
	if s == "" {
		r.fail(at, "is required: 1 to 65535, or the name of one of its ports")
		return 0
	}
	var names []string
	for _, p := range ports {
		if p.Name == s {
			if p.Protocol == "UDP" {
				r.fail(at, "%q is a port of UDP, which no probe speaks", s)
			}
			return p.Container
		}
		if p.Name != "" {
			names = append(names, p.Name)
		}
	}
	if strings.Trim(s, "0123456789") == "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			r.fail(at, "%s is out of range: 1 to 65535", clip(s))
		}
		return uint16(n)
	}
	hint := "; give a number, or name the port in ports"
	if n := Nearest(s, names); n != "" {
		hint = fmt.Sprintf(". Did you mean %q?", n)
	}
	r.fail(at, "there is no port %q%s", clip(s), hint)
	return 0
}
