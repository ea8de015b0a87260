package proxyfilter

import (
	"reflect"
	"sync"
)

// object is a stream's own filter with its methods looked up.
type object struct {
	v any
	h *handlers
}

// slab holds the per-stream objects. A stream's user slot is its place here and a
// generation, so that a wrong or late one finds nothing.
type slab struct {
	mu    sync.Mutex
	slots []slot
	free  []uint32
}

type slot struct {
	obj *object
	gen uint32
}

const slabBase = 2 // 0 and bridge.UserInterest are taken

func (s *slab) put(o *object) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var i uint32
	if n := len(s.free); n > 0 {
		i, s.free = s.free[n-1], s.free[:n-1]
	} else {
		i = uint32(len(s.slots))
		s.slots = append(s.slots, slot{})
	}
	s.slots[i].obj = o
	return uint64(s.slots[i].gen)<<32 | uint64(i+slabBase)
}

func (s *slab) get(user uint64) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.at(user); sl != nil {
		return sl.obj
	}
	return nil
}

func (s *slab) take(user uint64) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.at(user)
	if sl == nil {
		return nil
	}
	o := sl.obj
	sl.obj = nil
	sl.gen++
	s.free = append(s.free, uint32(user)-slabBase)
	return o
}

func (s *slab) at(user uint64) *slot {
	i := uint32(user) - slabBase
	if uint32(user) < slabBase || int(i) >= len(s.slots) {
		return nil
	}
	if sl := &s.slots[i]; sl.obj != nil && sl.gen == uint32(user>>32) {
		return sl
	}
	return nil
}

// streamObject answers the object of the event's stream, making it at its first event.
func (in *instance) streamObject(c *callState) (*handlers, string) {
	if c.Ev.User >= slabBase {
		if o := in.streams.get(c.Ev.User); o != nil {
			return o.h, ""
		}
		return nil, "event with a user slot that this library did not give out"
	}
	o := c.cfg.newObject()
	if o == nil {
		return nil, "NewStream returned another type than at configuration time"
	}
	c.Res.User = in.streams.put(o)
	return o.h, ""
}

func (c *config) newObject() *object {
	if o, ok := c.pool.Get().(*object); ok {
		return o
	}
	v := c.factory.NewStream()
	if reflect.TypeOf(v) != c.sample {
		return nil
	}
	return &object{v: v, h: lookup(v)}
}

func (c *config) recycle(o *object) {
	if r, ok := o.v.(StreamResetter); ok {
		r.Reset()
		c.pool.Put(o)
	}
}
