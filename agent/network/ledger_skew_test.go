package network

import (
	"errors"
	"strings"
	"testing"
)

// TestNetworkStateOfANewerVersion: what is noted beside the leases is borne, so
// that an agent can be gone back to; what limits an instance and is not known is not.
func TestNetworkStateOfANewerVersion(t *testing.T) {
	r, err := decodeRecord([]byte(`{"node":"n","subnet":"10.88.0.0/24","later":1,"leases":{"i":{"address":"10.88.0.2"}}}`))
	if err != nil || len(r.Leases) != 1 {
		t.Errorf("something more beside the leases: %v, %v", r, err)
	}
	_, err = decodeRecord([]byte(`{"node":"n","subnet":"10.88.0.0/24","leases":{"i":{"address":"10.88.0.2","limit":"x"}}}`))
	if !errors.Is(err, errNewer) || !strings.Contains(err.Error(), "limit") {
		t.Errorf("something more of a lease: %v", err)
	}
	if _, err = decodeRecord([]byte(`{"node":"n","subnet":"10.88.0.0/24","leases":{"i":{"address":7}}}`)); err == nil || errors.Is(err, errNewer) {
		t.Errorf("damage: %v", err)
	}
}
