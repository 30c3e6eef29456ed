package server

import (
	"testing"

	"redoubt.dev/redoubt/control/placement"
)

// A rejection names the variant: systrap and kvm are not refused for the same.
func TestARejectionNamesTheVariant(t *testing.T) {
	got := explanationToProto(placement.Explanation{Rejections: []placement.Rejection{{Node: "n1", Runtime: "gvisor", Variant: "kvm", Code: "not-verified"}}})
	if r := got.GetRejections()[0]; r.GetRuntime() != "gvisor" || r.GetVariant() != "kvm" {
		t.Errorf("the rejection is %v", r)
	}
}
