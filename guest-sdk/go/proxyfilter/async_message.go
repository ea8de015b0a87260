package proxyfilter

import (
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// open answers the batch; the caller holds the lock.
func (a *AsyncStream) open() bridge.Batch {
	if a.batch == nil {
		a.batch = a.inst.host.NewBatch(a.worker)
	}
	return a.batch
}

// edit answers the batch's encoder with the lock held, or nil if it is too late.
func (a *AsyncStream) edit() *bridge.Encoder {
	a.mu.Lock()
	if a.decided {
		a.mu.Unlock()
		return nil
	}
	return a.open().Enc()
}

// Phase is the phase of the event that waits.
func (a *AsyncStream) Phase() Phase { return a.phase }

// EndStream says that nothing follows in this direction.
func (a *AsyncStream) EndStream() bool { return a.flags&bridge.EvEndStream != 0 }

// BodyEnd says that Body reaches to the end of the body.
func (a *AsyncStream) BodyEnd() bool { return a.flags&bridge.EvBodyEnd != 0 }

// OverLimit says that the body is larger than the limit for holding it.
func (a *AsyncStream) OverLimit() bool { return a.flags&bridge.EvOverLimit != 0 }

// CanReply says that a local reply could still be made when the event happened.
func (a *AsyncStream) CanReply() bool { return a.flags&bridge.EvCanReply != 0 }

// Get is the value of the first header field of this name, "" if there is none.
func (a *AsyncStream) Get(name string) string { return a.get(false, name) }

// GetTrailer is Get for trailers.
func (a *AsyncStream) GetTrailer(name string) string { return a.get(true, name) }

// nothing is what a function that has returned can read.
var nothing bridge.Job

// read answers what can be read; the caller holds the lock.
func (a *AsyncStream) read() *bridge.Job {
	if a.job == nil {
		return &nothing
	}
	return a.job
}

func (a *AsyncStream) get(trailers bool, name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	name = lower(name)
	list := a.read().Fields
	if trailers {
		list = a.read().Trailers
	}
	for i := range list {
		if f := &list[i]; f.Name() == name {
			return a.own(f.Value())
		}
	}
	return ""
}

func (a *AsyncStream) own(s string) string {
	if a.lent || a.inline {
		return strings.Clone(s)
	}
	return s
}

// Headers are all header fields of the event.
func (a *AsyncStream) Headers() []Field {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cloneFields(a.read().Fields)
}

// Trailers are all trailer fields of the event.
func (a *AsyncStream) Trailers() []Field {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cloneFields(a.read().Trailers)
}

// Body is a copy of the event's view of the body.
func (a *AsyncStream) Body() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]byte(nil), a.read().Body...)
}

// BodyLen is the length of the event's view of the body.
func (a *AsyncStream) BodyLen() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.read().Body)
}

// BodyOffset is the position of the view's first byte in the body.
func (a *AsyncStream) BodyOffset() uint64 { return a.offset }

// Attr is the value of a declared attribute.
func (a *AsyncStream) Attr(name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, w := range a.cfg.attrs {
		if attrs := a.read().Attrs; w.Name == name && i < len(attrs) && attrs[i].Present {
			return a.own(attrs[i].Value)
		}
	}
	return ""
}

// Set leaves one header field of this name, with this value.
func (a *AsyncStream) Set(name, value string) {
	a.header(bridge.OpHeaderSet, bridge.TargetHeaders, name, value, 0)
}

// SetSensitive is Set for a value that must never be logged, traced or indexed.
func (a *AsyncStream) SetSensitive(name, value string) {
	a.header(bridge.OpHeaderSet, bridge.TargetHeaders, name, value, bridge.StrSensitive)
}

// Add appends a header field.
func (a *AsyncStream) Add(name, value string) {
	a.header(bridge.OpHeaderAdd, bridge.TargetHeaders, name, value, 0)
}

// Del removes all header fields of this name.
func (a *AsyncStream) Del(name string) {
	a.header(bridge.OpHeaderDelete, bridge.TargetHeaders, name, "", 0)
}

// SetTrailer leaves one trailer field of this name, with this value.
func (a *AsyncStream) SetTrailer(name, value string) {
	a.header(bridge.OpHeaderSet, bridge.TargetTrailers, name, value, 0)
}

// DelTrailer removes all trailer fields of this name.
func (a *AsyncStream) DelTrailer(name string) {
	a.header(bridge.OpHeaderDelete, bridge.TargetTrailers, name, "", 0)
}

func (a *AsyncStream) header(kind uint16, target uint32, name, value string, flags uint32) {
	if e := a.edit(); e != nil {
		e.Header(kind, target, name, value, flags)
		a.mu.Unlock()
	}
}

func (a *AsyncStream) count(kind uint16, n int) {
	if e := a.edit(); e != nil {
		e.Count(kind, uint64(max(n, 0)))
		a.mu.Unlock()
	}
}

// Pass lets the next n bytes of the view go on, Drop removes them and Inject puts
// p in between, as the methods of [Body] do.
func (a *AsyncStream) Pass(n int) { a.count(bridge.OpPass, n) }

// Drop removes the next n bytes of the view.
func (a *AsyncStream) Drop(n int) { a.count(bridge.OpDrop, n) }

// Inject puts p at the cursor.
func (a *AsyncStream) Inject(p []byte) {
	if len(p) == 0 {
		return
	}
	if e := a.edit(); e != nil {
		e.Data(bridge.OpInject, 0, p)
		a.mu.Unlock()
	}
}

// ReplaceBody drops the whole view and puts p in its place.
func (a *AsyncStream) ReplaceBody(p []byte) {
	e := a.edit()
	if e == nil {
		return
	}
	if n := len(a.read().Body); n > 0 {
		e.Count(bridge.OpDrop, uint64(n))
	}
	if len(p) > 0 {
		e.Data(bridge.OpInject, 0, p)
	}
	a.mu.Unlock()
}

// SetMetadata is [Stream.SetMetadata].
func (a *AsyncStream) SetMetadata(namespace, key, value string) {
	if e := a.edit(); e != nil {
		e.Metadata(namespace, key, value)
		a.mu.Unlock()
	}
}

// RouteToCluster is [Stream.RouteToCluster].
func (a *AsyncStream) RouteToCluster(name string) {
	if e := a.edit(); e != nil {
		e.Route("cluster", name)
		a.mu.Unlock()
	}
}

// Record is [Stream.Record].
func (a *AsyncStream) Record(m Metric, value int64) {
	if e := a.edit(); e != nil {
		m.encode(e, value)
		a.mu.Unlock()
	}
}
