package server

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

// TestHealth: every reason for which a server is not serving, alone.
func TestHealth(t *testing.T) {
	for _, tt := range []struct {
		led, identity bool
		store, want   string
	}{
		{true, true, "", ""},
		{false, true, "", "leader"},
		{true, false, "", "certificate"},
		{true, true, "disk full", "disk full"},
		{true, true, "disk full, on its reserve", "reserve"},
	} {
		got := unhealthy(tt.led, tt.identity, tt.store)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q", tt, got)
		}
	}
	now := time.Now()
	leaf := &x509.Certificate{NotBefore: now, NotAfter: now.Add(time.Hour)}
	for after, want := range map[time.Duration]bool{0: true, 50 * time.Minute: true, 55 * time.Minute: false, 2 * time.Hour: false} {
		if got := validFor(leaf, now.Add(after)); got != want {
			t.Errorf("%s into an hour's certificate: healthy %v", after, got)
		}
	}
}
