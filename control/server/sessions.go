package server

import (
	"sync"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// sessions are the agents that are connected to this server, at most one
// session a node: of two, the newer stays.
type sessions struct {
	mu     sync.Mutex
	byNode map[string]*session
	// ended since the last batch: their nodes are no longer heard here.
	ended map[string]*session
	dirty chan struct{} // capacity 1
}

func newSessions() *sessions {
	return &sessions{byNode: map[string]*session{}, ended: map[string]*session{}, dirty: make(chan struct{}, 1)}
}

// poke wakes the batcher.
func (ss *sessions) poke() {
	select {
	case ss.dirty <- struct{}{}:
	default:
	}
}

// send queues m for node; false if it has no session here.
func (ss *sessions) send(node string, m *redoubtv1.SessionResponse) bool {
	ss.mu.Lock()
	s, ok := ss.byNode[node]
	ss.mu.Unlock()
	return ok && s.queue(m)
}

func (ss *sessions) add(s *session) (older *session) {
	ss.mu.Lock()
	older = ss.byNode[s.node]
	ss.byNode[s.node] = s
	delete(ss.ended, s.node)
	ss.mu.Unlock()
	return older
}

func (ss *sessions) remove(s *session) {
	ss.mu.Lock()
	if ss.byNode[s.node] == s {
		delete(ss.byNode, s.node)
		ss.ended[s.node] = s
	}
	ss.mu.Unlock()
	ss.poke()
}

// all returns the present sessions, and takes those that ended.
func (ss *sessions) all() (present, ended []*session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.byNode {
		present = append(present, s)
	}
	for _, s := range ss.ended {
		ended = append(ended, s)
	}
	clear(ss.ended)
	return present, ended
}

// none tells whether no session is there or has ended unheard.
func (ss *sessions) none() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.byNode) == 0 && len(ss.ended) == 0
}

// peek returns the present sessions.
func (ss *sessions) peek() []*session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	present := make([]*session, 0, len(ss.byNode))
	for _, s := range ss.byNode {
		present = append(present, s)
	}
	return present
}
