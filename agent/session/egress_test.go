package session

import (
	"testing"
	"testing/synctest"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// The counters of egress rules are one answer, and the stream is over.
func TestEgressIsOneAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []*redoubtv1.AttachRequest
		open := &redoubtv1.StreamOpen{Uid: "a", Request: &redoubtv1.StreamOpen_Egress{Egress: &redoubtv1.EgressStart{}}}
		attached(t, open, &bulk{}, func(s redoubtv1.AgentService_AttachServer) error {
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				got = append(got, m)
			}
		})
		if len(got) != 1 || got[0].GetEgress().GetRules()[0].GetPackets() != 3 {
			t.Errorf("the answer is %v", got)
		}
	})
}
