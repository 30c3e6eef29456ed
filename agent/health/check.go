package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/agent/driver"
)

const (
	bodyRead    = 1 << 10
	headersRead = 16 << 10
	messageRead = 4 << 10
	outputKept  = 1 << 10
	// answerWithin a runtime that works lists its containers.
	answerWithin = 5 * time.Second
	// answerShown is how much of what a command said is repeated.
	answerShown = 80
)

// Dial connects to an instance's own address from its node.
type Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

// errNotPut marks a failure of the node, not of the instance.
var errNotPut = errors.New("the question could not be put")

// ask puts p to the instance once. The context carries the time-out.
func (m *Monitor) ask(ctx context.Context, t Target, p *Probe) Outcome {
	var err error
	switch {
	case p.HTTP != nil:
		err = m.get(ctx, t.Address, p.HTTP)
	case p.GRPC != nil:
		err = m.call(ctx, t.Address, p.GRPC)
	case p.TCP != 0:
		err = m.connect(ctx, t.Address, p.TCP)
	default:
		err = m.exec(ctx, t.ID, p.Exec)
	}
	switch {
	case err == nil:
		return Outcome{}
	case errors.Is(err, errNotPut):
		m.d.Log.Debug("a probe could not be put", "instance", t.Instance, "uid", t.UID, "err", err)
		return Outcome{Void: true}
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		if p.Exec != nil && !m.answers(ctx, t.ID) {
			m.d.Log.Debug("a command did not end, and the runtime does not answer", "instance", t.Instance, "uid", t.UID)
			return Outcome{Void: true}
		}
		return Outcome{Why: fmt.Sprintf("no answer within %s", p.Timeout)}
	}
	return Outcome{Why: clip(reason(err), 200)}
}

// answers asks the runtime after a time-out, whose own context has ended.
func (m *Monitor) answers(ctx context.Context, id driver.ID) bool {
	if m.d.Answers == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
	defer cancel()
	return m.d.Answers(ctx, id)
}

// reason is an error without what everybody knows: which address it was.
func reason(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection without an answer"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to it"
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Err != nil {
		return op.Err.Error()
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	return strings.TrimPrefix(err.Error(), "net/http: HTTP/1.x transport connection broken: ")
}

func (m *Monitor) dial(ctx context.Context, address string, port uint16) (net.Conn, error) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return nil, fmt.Errorf("%w: the instance has no address", errNotPut)
	}
	return m.d.Dial(ctx, netip.AddrPortFrom(ip, port))
}

func (m *Monitor) connect(ctx context.Context, address string, port uint16) error {
	c, err := m.dial(ctx, address, port)
	if err == nil {
		c.Close()
	}
	return err
}

func (m *Monitor) get(ctx context.Context, address string, h *HTTP) error {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return m.dial(ctx, address, h.Port) },
		// Nothing is sent that is worth stealing, and instances have no
		// certificate that anybody could check.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: headersRead,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	scheme := "http"
	if h.TLS {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(address, strconv.Itoa(int(h.Port)))+h.Path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "redoubt-probe")
	for _, x := range h.Headers {
		if strings.EqualFold(x.Name, "host") {
			req.Host = x.Value
			continue
		}
		req.Header.Add(x.Name, x.Value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Some servers call it an error if nobody reads a word of the answer.
	_, _ = io.CopyN(io.Discard, resp.Body, bodyRead)
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return errors.New(strconv.Itoa(resp.StatusCode))
	}
	return nil
}

func (m *Monitor) call(ctx context.Context, address string, g *GRPC) error {
	conn, err := grpc.NewClient("passthrough:///instance",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.dial(ctx, address, g.Port) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("redoubt-probe"), grpc.WithDisableServiceConfig(),
		grpc.WithMaxHeaderListSize(headersRead), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageRead)))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: g.Service})
	switch code := status.Code(err); {
	case err == nil && resp.GetStatus() == healthpb.HealthCheckResponse_SERVING:
		return nil
	case err == nil:
		return errors.New(resp.GetStatus().String())
	case code == codes.Unimplemented:
		return errors.New("it does not offer grpc.health.v1")
	case code == codes.NotFound:
		return errors.New("it does not know that service")
	case code == codes.DeadlineExceeded:
		return context.DeadlineExceeded
	default:
		return fmt.Errorf("%s: %s", code, status.Convert(err).Message())
	}
}

func (m *Monitor) exec(ctx context.Context, id driver.ID, command []string) error {
	out := &head{left: outputKept}
	code, err := m.d.Exec(ctx, id, driver.ExecSpec{Command: command}, driver.Streams{Stdout: out, Stderr: out})
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil && (code == 0 || errors.Is(err, driver.ErrNotRunning) || errors.Is(err, driver.ErrUnavailable)):
		return fmt.Errorf("%w: %w", errNotPut, err)
	case err != nil:
		return err // the command cannot be run
	case code == 0:
		return nil
	}
	said := clip(out.b.String(), answerShown)
	if said != "" {
		said = ": " + said
	}
	return fmt.Errorf("exit code %d%s", code, said)
}

// head keeps the first bytes and takes the rest; both streams write to it.
type head struct {
	mu   sync.Mutex
	b    bytes.Buffer
	left int
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(len(p), h.left)
	h.b.Write(p[:n])
	h.left -= n
	return len(p), nil
}
