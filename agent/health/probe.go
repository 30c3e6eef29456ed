package health

import (
	"fmt"
	"strings"
	"time"
)

// Kind says what a probe's answer is for.
type Kind uint8

const (
	Startup   Kind = iota // until it succeeds, the others are not asked
	Liveness              // where it fails, the container is restarted
	Readiness             // where it fails, the instance is not ready
	kinds
)

var kindNames = [...]string{"startup", "liveness", "readiness"}

func (k Kind) String() string { return kindNames[k] }

// Probe is one question and how often it is put. Exactly one of Exec, HTTP, TCP
// and GRPC is set.
type Probe struct {
	Exec []string
	HTTP *HTTP
	TCP  uint16 // port; 0: none
	GRPC *GRPC

	InitialDelay, Period, Timeout time.Duration
	// Success and Failure are how many answers in a row decide; at least 1.
	Success, Failure int
}

// HTTP is a GET request. 200 to 399 is success.
type HTTP struct {
	Port    uint16
	Path    string
	TLS     bool // the certificate is not checked
	Headers []Header
}

// Header of a request.
type Header struct{ Name, Value string }

// GRPC is a call of grpc.health.v1.Health/Check.
type GRPC struct {
	Port    uint16
	Service string
}

// Probes of one container; nil where there is none.
type Probes struct {
	Startup, Liveness, Readiness *Probe
}

// Any tells whether there is one at all.
func (p Probes) Any() bool { return p.Startup != nil || p.Liveness != nil || p.Readiness != nil }

func (p Probes) of(k Kind) *Probe {
	return [kinds]*Probe{p.Startup, p.Liveness, p.Readiness}[k]
}

// String is the question as a person reads it: "GET :8080/healthz".
func (p *Probe) String() string {
	switch {
	case p.HTTP != nil && p.HTTP.TLS:
		return fmt.Sprintf("GET https :%d%s", p.HTTP.Port, p.HTTP.Path)
	case p.HTTP != nil:
		return fmt.Sprintf("GET :%d%s", p.HTTP.Port, p.HTTP.Path)
	case p.GRPC != nil && p.GRPC.Service != "":
		return fmt.Sprintf("grpc :%d %s", p.GRPC.Port, p.GRPC.Service)
	case p.GRPC != nil:
		return fmt.Sprintf("grpc :%d", p.GRPC.Port)
	case p.TCP != 0:
		return fmt.Sprintf("tcp :%d", p.TCP)
	}
	return "exec " + clip(strings.Join(p.Exec, " "), 60)
}

// clip keeps a text short, in one line and free of what a terminal obeys.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\ufffd':
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
