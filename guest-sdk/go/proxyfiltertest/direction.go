package proxyfiltertest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// message is one direction's content.
type message struct {
	fields   []Field
	body     []byte
	trailers []Field
}

// direction is one direction under way: the state machine of the specification's
// chapter on bodies, for one filter and a failure mode of closed.
type direction struct {
	s        *stream
	dir      int
	in, out  message
	label    string
	held     bool // headers arrived and did not leave
	view     []byte
	offset   uint64
	arrived  int
	wantMore uint64 // after MORE: how many more bytes make it worth another event
	keeps    bool
	resumed  bool
}

func (s *stream) direction(dir int, in message) message {
	d := &direction{s: s, dir: dir, in: in, label: [...]string{"request", "response"}[dir], held: true}
	d.out.trailers = slices.Clone(in.trailers)
	d.headers()
	d.body()
	d.trailers()
	return d.out
}

// phase is that of this direction: 0 headers, 1 body, 2 trailers.
func (d *direction) phase(n uint32) uint32 {
	return bridge.PhaseRequestHeaders + 3*uint32(d.dir) + n
}

func (d *direction) subscribed(n uint32) bool {
	return d.s.h.cfg.Subscribe&^d.s.unsub>>d.phase(n)&1 != 0
}

func (d *direction) mode() uint32 {
	if m := d.s.mode[d.dir]; m != 0 && d.subscribed(1) {
		return m
	}
	return bridge.BodySkip
}

func (d *direction) flags() uint32 {
	if d.s.ex.Upstream == nil || d.held {
		return bridge.EvCanReply
	}
	return 0
}

func (d *direction) bodyless() bool { return len(d.in.body) == 0 && len(d.in.trailers) == 0 }

// event delivers one and handles what all phases have in common.
func (d *direction) event(ev *event) *verdict {
	d.s.h.t.Helper()
	ev.flags |= d.flags()
	if d.dir == bridge.DirResponse && d.s.h.cfg.Flags&bridge.CfgWantPeerFields != 0 {
		ev.peerFields = d.s.req
	}
	ev.offset = d.offset
	v := d.s.h.deliver(d.s, ev, d.label)
	if v == nil {
		d.s.ex.Cancelled = true
		d.s.cut()
	}
	d.s.judge(v, d)
	return v
}

func (d *direction) headers() {
	if d.subscribed(0) {
		ev := &event{phase: d.phase(0), fields: d.in.fields}
		if d.bodyless() {
			ev.flags = bridge.EvEndStream
		}
		v := d.event(ev)
		d.apply(v, 0)
		if v.action == bridge.ActMore {
			if d.mode() != bridge.BodyStream || d.bodyless() {
				d.s.fail("MORE at the headers of a message whose body does not come as a stream")
			}
			d.keeps, d.wantMore = true, v.more
			return
		}
	}
	if d.mode() == bridge.BodyWhole && (!d.bodyless() || !d.subscribed(0)) {
		return
	}
	d.release()
}

// release lets the headers go.
func (d *direction) release() {
	if d.held {
		d.held = false
		d.out.fields = d.in.fields
	}
}

// pieces splits the body by the seed: whole, byte by byte, or anywhere.
func (h *Host) pieces(b []byte) (p [][]byte) {
	style := h.intn(4)
	for len(b) > 0 {
		n := len(b)
		switch style {
		case 1:
			if n = 1; len(p) > 512 {
				n = len(b)
			}
		case 2, 3:
			n = 1 + h.intn(len(b))
		}
		p = append(p, b[:n])
		b = b[n:]
	}
	return p
}

func (d *direction) body() {
	if d.bodyless() && (d.mode() != bridge.BodyWhole || !d.held) {
		d.release()
		return
	}
	p := d.s.h.pieces(d.in.body)
	// The end may be known with the last bytes, or only later.
	if len(p) == 0 || d.s.h.intn(2) == 0 {
		p = append(p, nil)
	}
	for i, piece := range p {
		last := i == len(p)-1
		switch d.mode() {
		case bridge.BodySkip:
			d.release()
			d.passView()
			d.pass(piece)
		case bridge.BodyObserve:
			d.release()
			if len(piece) > 0 || last {
				ev := d.bodyEvent(piece, last)
				d.pass(piece)
				if v := d.event(ev); v.action != bridge.ActContinue || len(v.ops) > 0 {
					d.s.fail("OBSERVE allows a look and nothing else")
				}
			}
		case bridge.BodyWhole:
			d.view = append(d.view, piece...)
			if m := d.s.h.cfg.MaxBody[d.dir]; m > 0 && uint64(len(d.view)) > m {
				d.overLimit(last)
			} else if last {
				d.whole()
			}
		case bridge.BodyStream:
			d.view = append(d.view, piece...)
			if d.due(len(piece), last) {
				d.stream(last)
			}
		}
	}
	d.release()
	d.passView()
}

func (d *direction) due(n int, last bool) bool {
	if last {
		return true
	}
	if !d.keeps {
		return n > 0
	}
	d.arrived += n
	want := d.wantMore
	if want == 0 {
		want = uint64(max(1024, len(d.view)/8))
	}
	return uint64(d.arrived) >= want
}

// bodyEvent shows b in up to 64 chunks.
func (d *direction) bodyEvent(b []byte, last bool) *event {
	ev := &event{phase: d.phase(1)}
	for len(b) > 0 {
		n := len(b)
		if len(ev.chunks) < 63 {
			n = 1 + d.s.h.intn(len(b))
		}
		ev.chunks = append(ev.chunks, b[:n])
		b = b[n:]
	}
	if last {
		ev.flags |= bridge.EvBodyEnd
		if len(d.in.trailers) == 0 {
			ev.flags |= bridge.EvEndStream
		}
	}
	return ev
}

func (d *direction) stream(last bool) {
	ev := d.bodyEvent(d.view, last)
	if d.held {
		ev.flags |= bridge.EvHeadersHeld
		ev.fields = d.in.fields
	}
	v := d.event(ev)
	if v.action == bridge.ActMore && last {
		d.s.fail("MORE at the end of the body (PXG-ACT-003)")
	}
	d.apply(v, len(d.view))
	d.keeps, d.arrived, d.wantMore = v.action == bridge.ActMore, 0, v.more
	if v.action == bridge.ActContinue {
		d.release()
		d.passView()
	}
}

func (d *direction) whole() {
	ev := d.bodyEvent(d.view, true)
	ev.flags |= bridge.EvWholeBody | bridge.EvHeadersHeld | bridge.EvEndStream
	ev.fields, ev.trailers = d.in.fields, d.out.trailers
	v := d.event(ev)
	if v.action == bridge.ActMore {
		d.s.fail("MORE at the end of the body (PXG-ACT-003)")
	}
	d.apply(v, len(d.view))
	d.release()
	d.passView()
}

func (d *direction) overLimit(last bool) {
	ev := d.bodyEvent(d.view, last)
	ev.flags |= bridge.EvOverLimit | bridge.EvHeadersHeld
	ev.fields = d.in.fields
	v := d.event(ev)
	if v.action == bridge.ActMore {
		d.s.fail("MORE over the limit of a whole body (PXG-BODY-014)")
	}
	d.apply(v, len(d.view))
	d.release()
	d.passView()
	if v.bodyMode[d.dir] == 0 {
		d.s.mode[d.dir] = bridge.BodyStream
	}
}

func (d *direction) pass(b []byte) {
	d.out.body = append(d.out.body, b...)
	d.offset += uint64(len(b))
}

func (d *direction) passView() {
	d.pass(d.view)
	d.view = nil
}

func (d *direction) trailers() {
	if len(d.in.trailers) == 0 || !d.subscribed(2) || d.mode() == bridge.BodyWhole {
		return
	}
	v := d.event(&event{phase: d.phase(2), trailers: d.out.trailers, flags: bridge.EvEndStream})
	if v.action == bridge.ActMore {
		d.s.fail("MORE at trailers")
	}
	d.apply(v, 0)
}

// apply validates a batch and applies it.
func (d *direction) apply(v *verdict, view int) {
	h := d.s.h
	h.t.Helper()
	headers, trailers := edit{list: d.in.fields}, edit{list: d.out.trailers}
	cursor := 0
	for _, o := range v.ops {
		e, what := &headers, d.label+" header"
		if o.target == bridge.TargetTrailers {
			e, what = &trailers, d.label+" trailer"
		}
		switch o.kind {
		case bridge.OpHeaderSet, bridge.OpHeaderAdd, bridge.OpHeaderDelete, bridge.OpSetAt, bridge.OpDeleteAt:
			if e == &headers && !d.held {
				h.t.Errorf("%s %q is changed after the headers left: the change is lost", what, o.key)
				continue
			}
			if text := e.do(o); text != "" {
				d.s.fail(text)
			}
			if o.kind == bridge.OpHeaderSet || o.kind == bridge.OpHeaderAdd {
				h.checkField(what, string(o.key), string(o.val), o.kind == bridge.OpHeaderSet)
			}
		case bridge.OpPass, bridge.OpDrop:
			if o.u0 > uint64(view-cursor) {
				d.s.fail(fmt.Sprintf("PASS or DROP of %d bytes at %d of a view of %d bytes (PXG-BODY-006)", o.u0, cursor, view))
			}
			b := d.view[:o.u0]
			if o.kind == bridge.OpPass {
				d.early(v)
				d.pass(b)
			} else {
				d.offset += o.u0
			}
			d.view = d.view[o.u0:]
			cursor += int(o.u0)
		case bridge.OpInject:
			d.early(v)
			if strings.IndexByte(string(o.val), poison) >= 0 && h.stale(o.val) {
				h.t.Errorf("bytes are injected into the %s body that are a view that died (PXG-MEM-002): %s", d.label, h.whose(string(o.val)))
			}
			d.out.body = append(d.out.body, o.val...)
		case bridge.OpBodyWrite:
			h.t.Errorf("BODY_WRITE in a result (PXG-MUT-006)")
		}
	}
	d.in.fields, d.out.trailers = headers.result(), trailers.result()
}

// early is for bytes that would leave before the headers.
func (d *direction) early(v *verdict) {
	if d.held && v.action == bridge.ActMore {
		d.s.fail("PASS or INJECT with MORE while the headers are held (PXG-BODY-013)")
	}
}

// stale says whether b begins with the rubbish of a dead view.
func (h *Host) stale(b []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.dead {
		if len(r.mem) > 1 && strings.Contains(string(b), string(r.mem)) {
			return true
		}
	}
	return false
}

// edit applies field operations; indices count in the list as delivered.
type edit struct {
	list  []Field
	gone  map[int]bool
	value map[int]string
	more  []Field
}

func (e *edit) do(o op) string {
	name := string(o.key)
	remove := func() {
		for i, f := range e.list {
			if f.Name == name {
				e.drop(i)
			}
		}
		e.more = slices.DeleteFunc(e.more, func(f Field) bool { return f.Name == name })
	}
	switch o.kind {
	case bridge.OpHeaderSet:
		if strings.HasPrefix(name, ":") {
			for i, f := range e.list {
				if f.Name == name {
					e.set(i, string(o.val))
					return ""
				}
			}
		}
		remove()
		e.more = append(e.more, Field{Name: name, Value: string(o.val)})
	case bridge.OpHeaderAdd:
		if strings.HasPrefix(name, ":") {
			return fmt.Sprintf("pseudo-header %q can only be set (PXG-HDR-006)", name)
		}
		e.more = append(e.more, Field{Name: name, Value: string(o.val)})
	case bridge.OpHeaderDelete:
		if strings.HasPrefix(name, ":") {
			return fmt.Sprintf("pseudo-header %q can only be set (PXG-HDR-006)", name)
		}
		remove()
	case bridge.OpSetAt, bridge.OpDeleteAt:
		if o.u0 >= uint64(len(e.list)) {
			return fmt.Sprintf("index %d of %d fields (PXG-HDR-004)", o.u0, len(e.list))
		}
		if o.kind == bridge.OpSetAt {
			e.set(int(o.u0), string(o.val))
		} else {
			e.drop(int(o.u0))
		}
	}
	return ""
}

func (e *edit) drop(i int) {
	if e.gone == nil {
		e.gone = map[int]bool{}
	}
	e.gone[i] = true
}

func (e *edit) set(i int, v string) {
	if e.value == nil {
		e.value = map[int]string{}
	}
	e.value[i] = v
}

func (e *edit) result() (f []Field) {
	for i, x := range e.list {
		if e.gone[i] {
			continue
		}
		if v, ok := e.value[i]; ok {
			x.Value = v
		}
		f = append(f, x)
	}
	return append(f, e.more...)
}
