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
	attrs  []bridge.Attr
}

func newCall(h *host) *call {
	c := &call{host: h}
	c.Init(c)
	return c
}

func (c *call) begin(ev *C.pxg_event, out *C.pxg_result) {
	c.Ev = (*bridge.Event)(unsafe.Pointer(ev))
	c.Res = (*bridge.Result)(unsafe.Pointer(out))
	c.Headers.F = fieldsView(ev.fields, ev.n_fields)
	if ev.n_trailers|ev.n_peer_fields|ev.n_peer_trailers|ev.n_chunks|ev.n_attrs != 0 {
		c.beginMore(ev)
	}
	// Never NULL, and cheaper than unsafe.Slice, which multiplies to see whether they wrap.
	ops, buf := out.scratch_ops, out.scratch
	c.Enc.Reset(
		(*[maxScratch / bridge.OpSize]bridge.Op)(unsafe.Pointer(ops))[:out.scratch_ops_cap:out.scratch_ops_cap], uintptr(unsafe.Pointer(ops)),
		(*[maxScratch]byte)(unsafe.Pointer(buf))[:out.scratch_cap:out.scratch_cap], uintptr(unsafe.Pointer(buf)))
}

// maxScratch is more than any host lends.
const maxScratch = 1 << 40

// beginMore fills in what a headers event rarely has.
func (c *call) beginMore(ev *C.pxg_event) {
	c.Trailers.F = fieldsView(ev.trailers, ev.n_trailers)
	c.PeerHeaders.F = fieldsView(ev.peer_fields, ev.n_peer_fields)
	c.PeerTrailers.F = fieldsView(ev.peer_trailers, ev.n_peer_trailers)
	c.Chunks = c.chunks[:0]
	for _, s := range unsafe.Slice(ev.chunks, int(ev.n_chunks)) {
		c.Chunks = append(c.Chunks, unsafe.Slice((*byte)(s.ptr), int(s.len)))
	}
	if n := int(ev.n_attrs); n > 0 {
		c.attrs = appendAttrs(c.attrs[:0], ev.attrs, n)
		c.Attrs = c.attrs
	}
}

func (c *call) end() {
	c.Enc.Seal(c.Res)
	// Nothing here may be left pointing at the host's memory: once unmapped, the
	// addresses may become the collector's.
	c.Ev, c.Res, c.Headers.F = nil, nil, nil
	c.Enc.Forget()
	if c.Chunks != nil {
		c.Trailers.F, c.PeerHeaders.F, c.PeerTrailers.F = nil, nil, nil
		clear(c.Chunks)
		clear(c.Attrs)
		c.Chunks, c.Attrs = nil, nil
	}
}

func fieldsView(f *C.pxg_field, n C.uint64_t) []bridge.RawField {
	if n == 0 {
		return nil
	}
	return (*[1 << 32]bridge.RawField)(unsafe.Pointer(f))[:n:n]
}

func text(s *C.pxg_str) string { return unsafe.String((*byte)(s.ptr), int(s.len)) }

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
