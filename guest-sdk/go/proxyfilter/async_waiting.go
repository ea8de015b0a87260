package proxyfilter

import "sync"

// waitShard is a part of the table of those that can be cancelled: chains of the
// streams themselves.
type waitShard struct {
	mu     sync.Mutex
	chains []*AsyncStream // a power of two, or none
	n      int
	// Tokens cancelled before their job was taken from the ring; two generations,
	// so that those which never turn up are forgotten.
	dead, older map[uint64]struct{}
}

func hash(token uint64) uint64 { return token * 0x9e3779b97f4a7c15 }

func (in *instance) shard(token uint64) *waitShard { return &in.waiting[hash(token)>>60] }

func (s *waitShard) chain(token uint64) **AsyncStream {
	return &s.chains[hash(token)>>28&uint64(len(s.chains)-1)]
}

func (s *waitShard) put(a *AsyncStream) {
	if s.n >= len(s.chains) {
		old := s.chains
		s.chains = make([]*AsyncStream, max(16, 4*len(old)))
		for _, a := range old {
			for a != nil {
				next, c := a.next, s.chain(a.token)
				a.next, *c = *c, a
				a = next
			}
		}
	}
	c := s.chain(a.token)
	a.next, *c = *c, a
	s.n++
}

func (s *waitShard) take(token uint64) *AsyncStream {
	if s.n == 0 {
		return nil
	}
	for p := s.chain(token); *p != nil; p = &(*p).next {
		if a := *p; a.token == token {
			*p, a.next = a.next, nil
			s.n--
			return a
		}
	}
	return nil
}

// wait enters a in the table of those that can be cancelled; false if it has been already.
func (in *instance) wait(a *AsyncStream) bool {
	s := in.shard(a.token)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead != nil || s.older != nil {
		if _, ok := s.dead[a.token]; ok {
			delete(s.dead, a.token)
			return false
		}
		if _, ok := s.older[a.token]; ok {
			delete(s.older, a.token)
			return false
		}
	}
	s.put(a)
	return true
}

func (in *instance) forget(token uint64) {
	s := in.shard(token)
	s.mu.Lock()
	s.take(token)
	s.mu.Unlock()
}

// OnCancel is on_cancel.
func (in *instance) OnCancel(cfg, user, stream, token uint64, worker uint32) {
	defer in.barrier("OnCancel")
	s := in.shard(token)
	s.mu.Lock()
	a := s.take(token)
	if a == nil {
		if len(s.dead) >= 1024 {
			s.older, s.dead = s.dead, nil
		}
		if s.dead == nil {
			s.dead = map[uint64]struct{}{}
		}
		s.dead[token] = struct{}{}
	}
	s.mu.Unlock()
	if a != nil {
		a.gone()
	}
}
