package cabi

// #include "pxgo.h"
// #include <stdlib.h>
import "C"

import (
	"unsafe"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// call is one worker's bridge.Call and what is needed to fill it.
type call struct {
	bridge.Call
	host   *host
	busy   bool
	chunks [64][]byte
	conv   [4][]bridge.Field
	sens   []bool
	attrs  []bridge.Attr
}

func newCall(h *host) *call {
	c := &call{host: h}
	c.Res.Enc.Init(c)
	return c
}

func (c *call) begin(ev *C.pxg_event, out *C.pxg_result, flags uint32) {
	e := &c.Ev
	e.Phase, e.Flags, e.Worker = uint32(ev.phase), uint32(ev.flags), uint32(ev.worker)
	e.Config, e.User, e.Stream = uint64(ev.config), uint64(ev.user), uint64(ev.stream)
	e.Token, e.Arg, e.BodyOffset = uint64(ev.token), uint64(ev.arg), uint64(ev.body_offset)
	if flags == 0 {
		// A string of the ABI without flags has the bits of a Go string.
		e.Fields = fieldsView(ev.fields, ev.n_fields)
		if ev.n_trailers|ev.n_peer_fields|ev.n_peer_trailers != 0 {
			e.Trailers = fieldsView(ev.trailers, ev.n_trailers)
			e.PeerFields = fieldsView(ev.peer_fields, ev.n_peer_fields)
			e.PeerTrails = fieldsView(ev.peer_trailers, ev.n_peer_trailers)
		}
	} else {
		c.convert(ev)
	}
	if n := int(ev.n_chunks); n > 0 {
		e.Chunks = c.chunks[:0]
		for _, s := range unsafe.Slice(ev.chunks, n) {
			e.Chunks = append(e.Chunks, unsafe.Slice((*byte)(s.ptr), int(s.len)))
		}
	}
	if n := int(ev.n_attrs); n > 0 {
		c.attrs = appendAttrs(c.attrs[:0], ev.attrs, n)
		e.Attrs = c.attrs
	}

	r := &c.Res
	r.Action, r.Flags, r.User = 0, 0, uint64(out.user)
	r.Unsubscribe, r.BodyMode, r.MoreBytes, r.PendNs = 0, [2]uint32{}, 0, 0
	// Empty scratch is not promised, but does no harm.
	r.Enc.Reset(
		unsafe.Slice((*bridge.Op)(unsafe.Pointer(out.scratch_ops)), int(out.scratch_ops_cap)), uintptr(unsafe.Pointer(out.scratch_ops)),
		unsafe.Slice((*byte)(out.scratch), int(out.scratch_cap)), uintptr(unsafe.Pointer(out.scratch)))
}

func (c *call) end(out *result) {
	r := &c.Res
	out.action, out.flags, out.user = r.Action, r.Flags, r.User
	ops, n := r.Enc.Ops()
	out.ops, out.nOps = ops, uint64(n)
	out.reply = r.Enc.Reply()
	out.unsubscribe, out.bodyMode = r.Unsubscribe, r.BodyMode
	out.moreBytes, out.pendNs = r.MoreBytes, r.PendNs
	if p, n := r.Enc.ErrorText(); n != 0 {
		out.errPtr, out.errLen, out.errFlags = p, n, 0
	}
	// Nothing here may be left pointing at the host's memory: once unmapped, the
	// addresses may become the collector's.
	e := &c.Ev
	e.Fields = nil
	if e.Trailers != nil || e.PeerFields != nil || e.PeerTrails != nil {
		e.Trailers, e.PeerFields, e.PeerTrails = nil, nil, nil
	}
	if e.Chunks != nil {
		clear(e.Chunks)
		e.Chunks = nil
	}
	if e.Attrs != nil {
		clear(e.Attrs)
		e.Attrs = nil
	}
	if e.Sensitive != nil {
		e.Sensitive = nil
		for i := range c.conv {
			clear(c.conv[i])
		}
	}
	r.Enc.Forget()
}

func fieldsView(f *C.pxg_field, n C.uint64_t) []bridge.Field {
	return unsafe.Slice((*bridge.Field)(unsafe.Pointer(f)), int(n))
}

func text(s *C.pxg_str) string { return unsafe.String((*byte)(s.ptr), int(s.len)) }

// convert is for fields of which some carry flags.
func (c *call) convert(ev *C.pxg_event) {
	n := int(ev.n_fields)
	c.sens = append(c.sens[:0], make([]bool, n)...)
	for i, f := range unsafe.Slice(ev.fields, n) {
		c.sens[i] = (f.name.flags|f.value.flags)&C.PXG_STR_SENSITIVE != 0
	}
	c.Ev.Sensitive = c.sens
	c.Ev.Fields = c.convertList(0, ev.fields, ev.n_fields)
	c.Ev.Trailers = c.convertList(1, ev.trailers, ev.n_trailers)
	c.Ev.PeerFields = c.convertList(2, ev.peer_fields, ev.n_peer_fields)
	c.Ev.PeerTrails = c.convertList(3, ev.peer_trailers, ev.n_peer_trailers)
}

func (c *call) convertList(i int, f *C.pxg_field, n C.uint64_t) []bridge.Field {
	l := c.conv[i][:0]
	for k := range unsafe.Slice(f, int(n)) {
		p := &unsafe.Slice(f, int(n))[k]
		l = append(l, bridge.Field{Name: text(&p.name), Value: text(&p.value)})
	}
	c.conv[i] = l
	return l
}

func appendAttrs(to []bridge.Attr, a *C.pxg_str, n int) []bridge.Attr {
	for i := range unsafe.Slice(a, n) {
		s := &unsafe.Slice(a, n)[i]
		to = append(to, bridge.Attr{Value: text(s), Present: s.flags&C.PXG_STR_ABSENT == 0})
	}
	return to
}

// ---- bridge.Memory, out of what the host lends for the call

func (c *call) More(n int) ([]byte, uintptr) { return c.host.scratchMore(n) }

func (c *call) MoreOps(n int) ([]bridge.Op, uintptr) {
	b, a := c.host.scratchMore(n * bridge.OpSize)
	if b == nil {
		return nil, 0
	}
	return unsafe.Slice((*bridge.Op)(unsafe.Pointer(unsafe.SliceData(b))), n), a
}

func (c *call) Owned(n int) ([]byte, uintptr, uintptr, uint64) { return owned(n) }

func (c *call) FreeOwned(ctx uint64) { C.pxgo_release(C.uint64_t(ctx)) }

func (h *host) scratchMore(n int) ([]byte, uintptr) {
	p := C.pxgo_scratch_more(h.c, C.uint64_t(n))
	if p == nil {
		return nil, 0
	}
	return unsafe.Slice((*byte)(p), n), uintptr(unsafe.Pointer(p))
}

// owned is memory that its receiver gives back with free, which is C and may run anywhere.
func owned(n int) ([]byte, uintptr, uintptr, uint64) {
	p := C.malloc(C.size_t(n))
	if p == nil {
		return nil, 0, 0, 0
	}
	return unsafe.Slice((*byte)(p), n), uintptr(p), uintptr(C.pxgo_release_fn()), uint64(uintptr(p))
}
