package proxyfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Why the context of an asynchronous function is cancelled, as [context.Cause]
// tells, and what the deciding methods answer when it is too late.
var (
	// ErrStreamGone says that the stream died, or that its deadline passed.
	ErrStreamGone = errors.New("proxyfilter: the stream is gone")
	// ErrDecided says that the function has decided already.
	ErrDecided = errors.New("proxyfilter: already decided")
	// errReturned cancels the context after the function has returned.
	errReturned = errors.New("proxyfilter: the asynchronous function returned")
)

// AsyncStream is a waiting stream, as its asynchronous function sees it. All that
// it reads is a copy, made when the event happened. Changes are collected and go
// to the host in one call with the decision.
//
// The function must decide by exactly one of Continue, Reply, StreamReply, More,
// Reset and Fail. If it returns without, or panics, its stream fails (as a rule:
// closed, with status 500), and no other. A decision answers nil if the host took it and
// [ErrStreamGone] if the stream died first.
//
// Methods may be called from several goroutines; none of them may be used after
// the function has returned.
type AsyncStream struct {
	inst   *instance
	cfg    *config
	fn     func(context.Context, *AsyncStream)
	token  uint64
	stream uint64
	worker uint32
	phase  Phase
	flags  uint32
	offset uint64

	fields, trailers []bridge.RawField
	attrs            []bridge.Attr
	body             []byte
	borrowed         bool // the strings above are views of the job's memory
	release          func()

	ctx    context.Context
	cancel context.CancelCauseFunc
	waits  bool // it is in the table of those that can be cancelled

	mu      sync.Mutex
	decided bool
	over    bool // the function returned
	batch   bridge.Batch
}

type waitShard struct {
	mu sync.Mutex
	m  map[uint64]*AsyncStream
	// Tokens cancelled before their job was taken from the ring; two generations,
	// so that those which never turn up are forgotten.
	dead, older map[uint64]struct{}
}

func (in *instance) shard(token uint64) *waitShard {
	return &in.waiting[(token*0x9e3779b97f4a7c15)>>60]
}

// wait enters a in the table of those that can be cancelled; false if it has been already.
func (in *instance) wait(a *AsyncStream) bool {
	s := in.shard(a.token)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.dead[a.token]; ok {
		delete(s.dead, a.token)
		return false
	}
	if _, ok := s.older[a.token]; ok {
		delete(s.older, a.token)
		return false
	}
	s.m[a.token] = a
	return true
}

func (in *instance) forget(token uint64) *AsyncStream {
	s := in.shard(token)
	s.mu.Lock()
	a := s.m[token]
	delete(s.m, token)
	s.mu.Unlock()
	return a
}

// OnCancel is on_cancel.
func (in *instance) OnCancel(cfg, user, stream, token uint64, worker uint32) {
	defer in.barrier("OnCancel")
	s := in.shard(token)
	s.mu.Lock()
	a := s.m[token]
	if a == nil {
		if len(s.dead) >= 1024 {
			s.older, s.dead = s.dead, nil
		}
		if s.dead == nil {
			s.dead = map[uint64]struct{}{}
		}
		s.dead[token] = struct{}{}
	} else {
		delete(s.m, token)
	}
	s.mu.Unlock()
	if a != nil {
		a.cancel(ErrStreamGone)
	}
}

// startAsync makes the asynchronous half of an event, which finish then launches.
func (c *callState) startAsync(fn func(context.Context, *AsyncStream)) Action {
	ev := c.Ev
	switch {
	case c.async != nil:
		return c.failf("Async was called twice in one event")
	case ev.Token == 0:
		return c.failf("Async in a %s event, which filter %q did not declare: register it with MayPend", Phase(ev.Phase), c.cfg.env.Filter)
	case c.Enc.Len() > 0 || c.Enc.Reply() != 0:
		return c.failf("Async after the event was changed: make the changes on the AsyncStream")
	}
	a := &AsyncStream{inst: c.inst, cfg: c.cfg, fn: fn, token: ev.Token, stream: ev.Stream, worker: ev.Worker,
		phase: Phase(ev.Phase), flags: ev.Flags, offset: ev.BodyOffset,
		fields: cloneRaw(c.Headers.F), trailers: cloneRaw(c.Trailers.F)}
	if len(c.Chunks) > 0 {
		a.body = Body{stamp: stampOf(c.Call), c: c}.Bytes()
	}
	if len(c.Attrs) > 0 {
		a.attrs = append(a.attrs, c.Attrs...)
		for i := range a.attrs {
			a.attrs[i].Value = clone(a.attrs[i].Value)
		}
	}
	c.async = a
	return actPending
}

// launch starts the function after its event has been found in order.
func (a *AsyncStream) launch() {
	if a.arm(); a.waits {
		a.inst.wait(a)
	}
	a.inst.host.Spawn(a.worker, a.cfg.decl.Nonblocking, a.run)
}

// arm makes the context. A function that never blocks has no use for one that can
// be cancelled: if its stream is dead, its decision is answered with STALE.
func (a *AsyncStream) arm() {
	if a.cfg != nil && a.cfg.decl.Nonblocking {
		a.ctx, a.cancel = context.Background(), func(error) {}
		return
	}
	a.waits = true
	a.ctx, a.cancel = context.WithCancelCause(context.Background())
}

// abandon is for a function that never started.
func (a *AsyncStream) abandon() {
	a.decided, a.over = true, true
}

// RunJobs starts or runs events that were copied on the loop thread.
func (in *instance) RunJobs(worker uint32, jobs []bridge.Job) (started bool) {
	for i := range jobs {
		if in.runJob(worker, &jobs[i]) {
			started = true
		}
	}
	return started
}

// runJob says whether it started a goroutine.
func (in *instance) runJob(worker uint32, j *bridge.Job) bool {
	ev := &j.Ev
	a := &AsyncStream{inst: in, token: ev.Token, stream: ev.Stream, worker: ev.Worker, phase: Phase(ev.Phase),
		flags: ev.Flags, offset: ev.BodyOffset, fields: j.Fields, trailers: j.Trailers, attrs: j.Attrs,
		body: j.Body, borrowed: true, release: j.Release}
	a.cfg = in.config(ev.Config)
	if a.cfg == nil || a.cfg.h == nil || uint32(a.phase) >= uint32(phaseCount) || a.cfg.h.async[a.phase] == nil {
		a.arm()
		_ = a.fail(fmt.Sprintf("job for the configuration %d, which has no asynchronous method for the %s", ev.Config, a.phase))
		a.end()
		return false
	}
	a.fn = a.cfg.h.async[a.phase]
	if a.arm(); a.waits && !in.wait(a) {
		a.cancel(ErrStreamGone)
		a.end()
		return false
	}
	if a.cfg.decl.Nonblocking {
		a.run()
		return false
	}
	go a.run()
	return true
}

// run is the barrier round the function.
func (a *AsyncStream) run() {
	returned := false
	defer func() {
		if !returned {
			if p := recover(); p != nil {
				_ = a.fail(a.inst.panicked(p, fmt.Sprintf("asynchronous function of filter %q, %s", a.cfg.env.Filter, a.phase)))
			} else {
				_ = a.fail("runtime.Goexit in an asynchronous function")
			}
		}
		a.end()
	}()
	a.fn(a.ctx, a)
	returned = true
	a.mu.Lock()
	undecided := !a.decided
	a.mu.Unlock()
	if undecided {
		// If the stream died meanwhile the host answers STALE, and nothing is logged.
		_ = a.fail(fmt.Sprintf("an asynchronous function of filter %q returned without a decision", a.cfg.env.Filter))
	}
}

func (a *AsyncStream) end() {
	a.mu.Lock()
	a.over = true
	if a.batch != nil {
		a.inst.host.Discard(a.batch)
		a.batch = nil
	}
	a.fields, a.trailers, a.attrs, a.body = nil, nil, nil, nil
	release := a.release
	a.release = nil
	a.mu.Unlock()
	a.cancel(errReturned)
	if release != nil {
		release()
	}
}

// decide closes the batch with an action and hands it over.
func (a *AsyncStream) decide(act Action, fill func(r *bridge.Result, e *bridge.Encoder)) error {
	a.mu.Lock()
	if a.decided {
		a.mu.Unlock()
		return ErrDecided
	}
	a.decided = true
	b := a.open()
	r, e := b.Result(), b.Enc()
	r.Action = uint32(act)
	if fill != nil {
		fill(r, e)
	}
	err := e.Err()
	if err != nil && act != actError {
		e.Drop()
		e.SetError(err.Error())
		r.Action = uint32(actError)
	}
	a.batch = nil
	a.mu.Unlock()
	if a.waits {
		a.inst.forget(a.token)
	}
	code := a.inst.host.Complete(a.token, b)
	switch {
	// A positive status is a success, also one that this version does not know.
	case code >= bridge.OK:
		return err
	case code == bridge.ErrStale:
		a.cancel(ErrStreamGone)
		return ErrStreamGone
	}
	// The token is still alive: the host did not understand the batch.
	text := fmt.Sprintf("the host refused the decision of an asynchronous function of filter %q with %s", a.cfg.env.Filter, statusName(code))
	fb := a.inst.host.NewBatch(a.worker)
	fb.Result().Action = uint32(actError)
	fb.Enc().SetError(text)
	a.inst.host.Complete(a.token, fb)
	return errors.New("proxyfilter: " + text)
}

func (a *AsyncStream) fail(text string) error {
	return a.decide(actError, func(_ *bridge.Result, e *bridge.Encoder) {
		e.Drop()
		e.SetError(text)
	})
}

// open answers the batch; the caller holds the lock.
func (a *AsyncStream) open() bridge.Batch {
	if a.batch == nil {
		a.batch = a.inst.host.NewBatch(a.worker)
	}
	return a.batch
}

// edit runs f on the batch, unless it is too late.
func (a *AsyncStream) edit(f func(e *bridge.Encoder)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.decided {
		f(a.open().Enc())
	}
}

// Continue applies the changes and lets the message go on.
func (a *AsyncStream) Continue() error { return a.decide(Continue, nil) }

// Reply answers the request here. Changes collected before are forgotten.
func (a *AsyncStream) Reply(p Reply) error {
	if text := p.fault(); text != "" {
		return errors.Join(errors.New("proxyfilter: "+text), a.fail(text))
	}
	return a.decide(actReply, func(_ *bridge.Result, e *bridge.Encoder) {
		e.Drop()
		e.SetReply(p.Status, p.flags(), p.GRPCStatus, p.Header, p.Trailers, p.Body, p.Details)
	})
}

// More keeps the view and asks for n more bytes, as [Stream.More] does.
func (a *AsyncStream) More(n uint64) error {
	if !a.phase.body() || a.flags&bridge.EvBodyEnd != 0 {
		text := fmt.Sprintf("More in a %s event, at the end of the body or outside of one", a.phase)
		return errors.Join(errors.New("proxyfilter: "+text), a.fail(text))
	}
	return a.decide(actMore, func(r *bridge.Result, _ *bridge.Encoder) { r.MoreBytes = n })
}

// Reset cuts the stream in both directions.
func (a *AsyncStream) Reset() error {
	return a.decide(actReset, func(_ *bridge.Result, e *bridge.Encoder) { e.Drop() })
}

// Fail ends the stream by the host's failure mode; the text goes to the log.
func (a *AsyncStream) Fail(err error) error { return a.fail(fmt.Sprint(err)) }

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
func (a *AsyncStream) Get(name string) string { return a.get(&a.fields, name) }

// GetTrailer is Get for trailers.
func (a *AsyncStream) GetTrailer(name string) string { return a.get(&a.trailers, name) }

func (a *AsyncStream) get(list *[]bridge.RawField, name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	name = lower(name)
	for i := range *list {
		if f := &(*list)[i]; f.Name() == name {
			return a.own(f.Value())
		}
	}
	return ""
}

func (a *AsyncStream) own(s string) string {
	if a.borrowed {
		return strings.Clone(s)
	}
	return s
}

// Headers are all header fields of the event.
func (a *AsyncStream) Headers() []Field {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cloneFields(a.fields)
}

// Trailers are all trailer fields of the event.
func (a *AsyncStream) Trailers() []Field {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cloneFields(a.trailers)
}

// Body is a copy of the event's view of the body.
func (a *AsyncStream) Body() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]byte(nil), a.body...)
}

// BodyLen is the length of the event's view of the body.
func (a *AsyncStream) BodyLen() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.body)
}

// BodyOffset is the position of the view's first byte in the body.
func (a *AsyncStream) BodyOffset() uint64 { return a.offset }

// Attr is the value of a declared attribute.
func (a *AsyncStream) Attr(name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, w := range a.cfg.attrs {
		if w.Name == name && i < len(a.attrs) && a.attrs[i].Present {
			return a.own(a.attrs[i].Value)
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
	a.edit(func(e *bridge.Encoder) { e.Header(kind, target, name, value, flags) })
}

// Pass lets the next n bytes of the view go on, Drop removes them and Inject puts
// p in between, as the methods of [Body] do.
func (a *AsyncStream) Pass(n int) {
	a.edit(func(e *bridge.Encoder) { e.Count(bridge.OpPass, uint64(max(n, 0))) })
}

// Drop removes the next n bytes of the view.
func (a *AsyncStream) Drop(n int) {
	a.edit(func(e *bridge.Encoder) { e.Count(bridge.OpDrop, uint64(max(n, 0))) })
}

// Inject puts p at the cursor.
func (a *AsyncStream) Inject(p []byte) {
	if len(p) > 0 {
		a.edit(func(e *bridge.Encoder) { e.Data(bridge.OpInject, 0, p) })
	}
}

// ReplaceBody drops the whole view and puts p in its place.
func (a *AsyncStream) ReplaceBody(p []byte) {
	a.edit(func(e *bridge.Encoder) {
		if len(a.body) > 0 {
			e.Count(bridge.OpDrop, uint64(len(a.body)))
		}
		if len(p) > 0 {
			e.Data(bridge.OpInject, 0, p)
		}
	})
}

// SetMetadata is [Stream.SetMetadata].
func (a *AsyncStream) SetMetadata(namespace, key, value string) {
	a.edit(func(e *bridge.Encoder) { e.Metadata(namespace, key, value) })
}

// RouteToCluster is [Stream.RouteToCluster].
func (a *AsyncStream) RouteToCluster(name string) {
	a.edit(func(e *bridge.Encoder) { e.Route("cluster", name) })
}

// Record is [Stream.Record].
func (a *AsyncStream) Record(m Metric, value int64) {
	a.edit(func(e *bridge.Encoder) { m.encode(e, value) })
}

// Ref names the stream for use after the function has returned.
func (a *AsyncStream) Ref() Ref { return Ref{inst: a.inst, stream: a.stream, worker: a.worker} }

// Log is the logger of this configuration.
func (a *AsyncStream) Log() *slog.Logger { return a.cfg.env.Log }

func statusName(code int32) string {
	switch code {
	case bridge.OK:
		return "OK"
	case bridge.Full:
		return "FULL"
	case bridge.ErrStale:
		return "STALE"
	case bridge.ErrState:
		return "STATE"
	case bridge.ErrArg:
		return "ARG"
	case bridge.ErrUnsupported:
		return "UNSUPPORTED"
	case bridge.ErrLimit:
		return "LIMIT"
	case bridge.ErrThread:
		return "THREAD"
	case bridge.ErrNotFound:
		return "NOTFOUND"
	}
	return fmt.Sprintf("status %d", code)
}
