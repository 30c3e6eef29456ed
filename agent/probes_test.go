package agent

import (
	"reflect"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/health"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestProbesAreReadWithTheDefaultsOfAPodSpec(t *testing.T) {
	u := func(n uint32) *uint32 { return &n }
	c := &redoubtv1.Container{
		Ports:         []*redoubtv1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		StartupProbe:  &redoubtv1.Probe{TcpSocket: &redoubtv1.TCPSocketAction{Port: "http"}},
		LivenessProbe: &redoubtv1.Probe{Exec: &redoubtv1.ExecAction{Command: []string{"ok"}}, InitialDelaySeconds: u(5), PeriodSeconds: u(7), TimeoutSeconds: u(3), FailureThreshold: u(9)},
		ReadinessProbe: &redoubtv1.Probe{HttpGet: &redoubtv1.HTTPGetAction{Port: "81", Scheme: "HTTPS",
			HttpHeaders: []*redoubtv1.HTTPHeader{{Name: "A", Value: "b"}}}, SuccessThreshold: u(2)},
	}
	var got health.Probes
	if err := readProbes(&got, c); err != nil {
		t.Fatal(err)
	}
	want := health.Probes{
		Startup:   &health.Probe{TCP: 8080, Period: 10 * time.Second, Timeout: time.Second, Success: 1, Failure: 3},
		Liveness:  &health.Probe{Exec: []string{"ok"}, InitialDelay: 5 * time.Second, Period: 7 * time.Second, Timeout: 3 * time.Second, Success: 1, Failure: 9},
		Readiness: &health.Probe{HTTP: &health.HTTP{Port: 81, Path: "/", TLS: true, Headers: []health.Header{{Name: "A", Value: "b"}}}, Period: 10 * time.Second, Timeout: time.Second, Success: 2, Failure: 3},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	// What this agent does not know it rejects, and does not run unasked.
	for _, p := range []*redoubtv1.Probe{
		{}, {Exec: &redoubtv1.ExecAction{}}, {TcpSocket: &redoubtv1.TCPSocketAction{Port: "https"}}, {Grpc: &redoubtv1.GRPCAction{Port: "0"}},
		{HttpGet: &redoubtv1.HTTPGetAction{Port: "65536"}},
	} {
		c.LivenessProbe = p
		if err := readProbes(new(health.Probes), c); err == nil {
			t.Errorf("%v is taken", p)
		}
	}
	// Whatever a hostile server sends, nothing is asked without a pause.
	c.LivenessProbe = &redoubtv1.Probe{Exec: &redoubtv1.ExecAction{Command: []string{"ok"}}, PeriodSeconds: u(0), TimeoutSeconds: u(0), FailureThreshold: u(0), SuccessThreshold: u(0)}
	if err := readProbes(&got, c); err != nil || got.Liveness.Period < time.Second || got.Liveness.Timeout < time.Second || got.Liveness.Failure < 1 || got.Liveness.Success < 1 {
		t.Errorf("read as %+v, %v", got.Liveness, err)
	}
}
