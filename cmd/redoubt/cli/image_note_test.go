package cli

import (
	"strings"
	"testing"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestAMovedTagIsShown(t *testing.T) {
	instance := func(name, digest string, revision uint64) *redoubtv1.Instance {
		return &redoubtv1.Instance{
			Assignment: &redoubtv1.Assignment{Instance: name, Revision: revision},
			Status:     &redoubtv1.InstanceStatus{Phase: redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING, ImageDigest: digest},
		}
	}
	for name, tt := range map[string]struct {
		instances []*redoubtv1.Instance
		want      []string
	}{
		"one content":   {[]*redoubtv1.Instance{instance("web-1", "sha256:a", 7), instance("web-2", "sha256:a", 7)}, nil},
		"two contents":  {[]*redoubtv1.Instance{instance("web-1", "sha256:a", 7), instance("web-2", "sha256:b", 7)}, []string{"web-1: sha256:a", "web-2: sha256:b"}},
		"two revisions": {[]*redoubtv1.Instance{instance("web-1", "sha256:a", 7), instance("web-2", "sha256:b", 8)}, nil},
		"not known yet": {[]*redoubtv1.Instance{instance("web-1", "sha256:a", 7), instance("web-2", "", 7)}, nil},
	} {
		got := notes(tt.instances, 80)
		if strings.Contains(got, "Image") != (tt.want != nil) {
			t.Errorf("%s: %q", name, got)
		}
		for _, w := range tt.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q has no %q", name, got, w)
			}
		}
	}
}
