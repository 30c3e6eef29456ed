package server

import (
	"testing"

	"redoubt.dev/redoubt/control/fleet"
)

func TestAnEventIsShownByWhatItIsAbout(t *testing.T) {
	web, node := &fleet.Event{Kind: fleet.EventInstance, Namespace: "prod"}, &fleet.Event{Kind: fleet.EventNode}
	for _, tt := range []struct {
		role           fleet.Role
		workload, node bool
	}{
		{fleet.Role{Role: "admin", Namespace: "*"}, true, true},
		{fleet.Role{Role: "viewer", Namespace: "*"}, true, true},
		{fleet.Role{Role: "viewer", Namespace: "prod"}, true, false},
		{fleet.Role{Role: "viewer", Namespace: "test"}, false, false},
		{fleet.Role{Role: "submitter", Namespace: "*"}, true, false},
		{fleet.Role{Role: "submitter", Namespace: "prod"}, true, false},
		{fleet.Role{Role: "nothing", Namespace: "*"}, false, false},
	} {
		held := []fleet.Role{tt.role}
		if got := visibleEvent(held, web); got != tt.workload {
			t.Errorf("%s in %s sees an event of a workload of prod: %v", tt.role.Role, tt.role.Namespace, got)
		}
		if got := visibleEvent(held, node); got != tt.node {
			t.Errorf("%s in %s sees an event of a node: %v", tt.role.Role, tt.role.Namespace, got)
		}
		if got := (selection{held: held, namespace: "test"}).takes(web); got {
			t.Error("another namespace's event passes the filter")
		}
	}
}
