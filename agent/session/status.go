package session

import (
	"time"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// statusQueue decides which statuses to tell in one session. The first batch is
// complete; later ones hold what is newer than what was acknowledged.
type statusQueue struct {
	sequence uint64
	// acked is the sequence of each instance's status that the server has.
	acked map[string]version
	// batch under way: its sequence and what it tells; 0: none.
	batch    uint64
	told     map[string]version
	statuses []*redoubtv1.InstanceStatus
	sent     time.Time
	complete bool // a complete batch was acknowledged
}

// version orders an instance's statuses.
type version struct{ fence, epoch, sequence uint64 }

func versionOf(s *redoubtv1.InstanceStatus) version {
	return version{s.GetFence().GetIndex(), s.GetFence().GetSiteEpoch(), s.GetSequence()}
}

func newStatusQueue() statusQueue { return statusQueue{acked: map[string]version{}} }

// next returns a batch to send now, or nil.
func (q *statusQueue) next(all []*redoubtv1.InstanceStatus) *redoubtv1.StatusBatch {
	if q.batch != 0 {
		return nil
	}
	b := &redoubtv1.StatusBatch{Complete: !q.complete}
	told := map[string]version{}
	for _, s := range all {
		if v := versionOf(s); !q.complete || q.acked[s.GetUid()] != v {
			b.Statuses = append(b.Statuses, s)
			told[s.GetUid()] = v
		}
	}
	if q.complete {
		q.forget(all)
		if len(b.Statuses) == 0 {
			return nil
		}
	}
	q.sequence++
	b.Sequence, q.batch, q.told = q.sequence, q.sequence, told
	q.statuses, q.sent = b.Statuses, time.Now()
	return b
}

// forget drops instances that are gone.
func (q *statusQueue) forget(all []*redoubtv1.InstanceStatus) {
	if len(q.acked) <= len(all) {
		return
	}
	here := make(map[string]bool, len(all))
	for _, s := range all {
		here[s.GetUid()] = true
	}
	for uid := range q.acked {
		if !here[uid] {
			delete(q.acked, uid)
		}
	}
}

// ack takes an acknowledgement, and returns what it is of and when that was sent.
func (q *statusQueue) ack(sequence uint64) (told []*redoubtv1.InstanceStatus, sent time.Time) {
	if q.batch == 0 || sequence != q.batch {
		return nil, time.Time{}
	}
	for uid, v := range q.told {
		q.acked[uid] = v
	}
	told, q.statuses = q.statuses, nil
	q.batch, q.told, q.complete = 0, nil, true
	return told, q.sent
}

// again gives the batch under way up; what it told is told anew.
func (q *statusQueue) again() { q.batch, q.told, q.statuses = 0, nil, nil }

func (q *statusQueue) underway() bool { return q.batch != 0 }
