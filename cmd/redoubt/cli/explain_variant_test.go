package cli

import (
	"strings"
	"testing"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestARejectionShowsTheVariant(t *testing.T) {
	got := rejections([]*redoubtv1.Rejection{
		{Node: "n1", Site: "oslo", Runtime: "gvisor", Variant: "kvm", Reason: "KVM is paravirtual"},
		{Node: "n1", Site: "oslo", Runtime: "crun", Reason: "it is not on PATH"},
	}, 80)
	for _, want := range []string{"gvisor (kvm): KVM is paravirtual", "crun: it is not on PATH"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}
