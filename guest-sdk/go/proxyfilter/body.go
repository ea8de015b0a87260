package proxyfilter

import (
	"iter"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// BodyMode is how the body of a direction is delivered.
type BodyMode uint32

// The body modes.
const (
	// BodySkip delivers nothing.
	BodySkip = BodyMode(bridge.BodySkip)
	// BodyStream delivers the body as it comes. The headers leave with the first Continue.
	BodyStream = BodyMode(bridge.BodyStream)
	// BodyWhole delivers one event with the whole body, the fields and the trailers.
	BodyWhole = BodyMode(bridge.BodyWhole)
	// BodyObserve gives a look at what has been forwarded already.
	BodyObserve = BodyMode(bridge.BodyObserve)
)

// Body is a view of the bytes that were received and not yet passed on.
//
// Pass, Drop and Inject move a cursor through the view, from its first byte on.
// With Continue the rest of the view goes on as it is; with More it stays and
// comes again.
type Body struct {
	stamp
	c *callState
}

// Len is the number of bytes in the view.
func (b Body) Len() int {
	b.check(b.c.Call)
	return int(b.c.bodyLen())
}

func (c *callState) bodyLen() uint64 {
	if !c.body.valid {
		c.body.valid, c.body.total = true, 0
		for _, k := range c.Chunks {
			c.body.total += uint64(len(k))
		}
	}
	return c.body.total
}

// Offset is the position of the view's first byte in the body.
func (b Body) Offset() uint64 {
	b.check(b.c.Call)
	return b.c.Ev.BodyOffset
}

// End says that the view reaches to the end of the body. Trailers may follow.
func (b Body) End() bool {
	b.check(b.c.Call)
	return b.c.Ev.Flags&bridge.EvBodyEnd != 0
}

// Whole says that the view is the whole body.
func (b Body) Whole() bool {
	b.check(b.c.Call)
	return b.c.Ev.Flags&bridge.EvWholeBody != 0
}

// ChunkViews ranges over the pieces of the view. They are lent: they must not be
// kept or written to.
func (b Body) ChunkViews() iter.Seq[[]byte] {
	b.check(b.c.Call)
	return func(yield func([]byte) bool) {
		for _, k := range b.c.Chunks {
			if !yield(k) {
				return
			}
		}
	}
}

// CopyTo copies bytes of the view, from offset on, and answers how many.
func (b Body) CopyTo(dst []byte, offset int) int {
	b.check(b.c.Call)
	n := 0
	for _, k := range b.c.Chunks {
		if offset >= len(k) {
			offset -= len(k)
			continue
		}
		n += copy(dst[n:], k[offset:])
		offset = 0
		if n == len(dst) {
			break
		}
	}
	return n
}

// AppendTo appends a copy of the view to dst.
func (b Body) AppendTo(dst []byte) []byte {
	b.check(b.c.Call)
	for _, k := range b.c.Chunks {
		dst = append(dst, k...)
	}
	return dst
}

// Bytes is a copy of the view.
func (b Body) Bytes() []byte { return b.AppendTo(make([]byte, 0, b.Len())) }

// Pass lets the next n bytes of the view go on.
func (b Body) Pass(n int) { b.move(bridge.OpPass, n) }

// Drop removes the next n bytes of the view.
func (b Body) Drop(n int) { b.move(bridge.OpDrop, n) }

func (b Body) move(kind uint16, n int) {
	b.check(b.c.Call)
	c := b.c
	if n < 0 || uint64(n) > c.bodyLen()-c.body.cursor {
		c.failf("%d bytes of the body can't be passed or dropped at %d of %d", n, c.body.cursor, c.bodyLen())
		return
	}
	if n == 0 {
		return
	}
	c.body.cursor += uint64(n)
	c.Enc.Count(kind, uint64(n))
}

// Inject puts p at the cursor. p is copied.
func (b Body) Inject(p []byte) {
	b.check(b.c.Call)
	if len(p) > 0 {
		b.c.Enc.Data(bridge.OpInject, 0, p)
	}
}

// Replace drops what is left of the view and puts p in its place.
func (b Body) Replace(p []byte) {
	b.check(b.c.Call)
	b.Drop(int(b.c.bodyLen() - b.c.body.cursor))
	b.Inject(p)
}
