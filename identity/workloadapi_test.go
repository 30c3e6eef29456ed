package identity_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"redoubt.dev/redoubt/identity"
)

// workloadAPI is a Workload API that sends what is put into its channel.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	answers chan *workload.X509SVIDResponse
}

func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, s grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case r := <-w.answers:
			if err := s.Send(r); err != nil {
				return err
			}
		}
	}
}

func TestWorkloadAPIFeedsTheSource(t *testing.T) {
	a, trust := authority(t, td)
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	api := &workloadAPI{answers: make(chan *workload.X509SVIDResponse)}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, api)
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(l) }()
	defer func() { s.Stop(); <-served }()

	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+socket)
	src, ok := identity.WorkloadAPI(quiet())
	if !ok {
		t.Fatal("SPIFFE_ENDPOINT_SOCKET is not honoured")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	running := make(chan error)
	runCtx, stop := context.WithCancel(ctx)
	go func() { running <- src.Run(runCtx) }()

	send := func(svid *x509svid.SVID) {
		t.Helper()
		chain, key, err := svid.MarshalRaw()
		if err != nil {
			t.Fatal(err)
		}
		answer := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: svid.ID.String(), X509Svid: chain, X509SvidKey: key, Bundle: trust.X509Authorities()[0].Raw,
		}}}
		select {
		case api.answers <- answer:
		case <-ctx.Done():
			t.Fatal("the source did not ask")
		}
	}
	first := sign(t, a, "spiffe://fleet.test/server/s1", time.Hour)
	send(first)
	if err := src.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := src.GetX509SVID()
	if err != nil || !got.Certificates[0].Equal(first.Certificates[0]) {
		t.Fatalf("serves %v, %v", got, err)
	}
	if b, err := src.GetX509BundleForTrustDomain(td); err != nil || !b.Equal(trust) {
		t.Fatalf("bundle: %v", err)
	}
	changed := src.Updated()
	second := sign(t, a, "spiffe://fleet.test/server/s1", time.Hour)
	send(second)
	select {
	case <-changed:
	case <-ctx.Done():
		t.Fatal("nobody was told of the rotation")
	}
	if got, err := src.GetX509SVID(); err != nil || !got.Certificates[0].Equal(second.Certificates[0]) {
		t.Fatalf("after the rotation serves %v, %v", got, err)
	}
	stop()
	if err := <-running; err != nil {
		t.Fatal(err)
	}
	if _, err := src.GetX509SVID(); err != nil {
		t.Fatalf("the last SVID is gone with the API: %v", err)
	}
}

func TestNoWorkloadAPIWithoutTheVariable(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	if _, ok := identity.WorkloadAPI(quiet()); ok {
		t.Fatal("found one")
	}
}
