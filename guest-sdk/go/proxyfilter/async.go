package proxyfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

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
// closed, with status 500), and no other. A decision answers [ErrStreamGone] if the
// stream died first, as far as that is known: decisions made at about the same time
// may go to the host together, and answer nil before it has judged them.
//
// Methods may be called from several goroutines; none of them may be used after
// the function has returned.
type AsyncStream struct {
	inst   *instance
	cfg    *config
	fn     func(context.Context, *AsyncStream)
	token  uint64
	stream uint64
	offset uint64
	worker uint32
	phase  Phase
	flags  uint32

	inline bool // run by whoever hands the decision over
	lent   bool // job is the host's, and must be given back
	waits  bool // it is in the table of those that can be cancelled

	mu      sync.Mutex
	decided bool
	held    bool        // the decision is in the batch and not handed over
	over    bool        // the function returned
	cause   cause       // why ctx is cancelled, or would be
	job     *bridge.Job // what it reads; nil when it is over
	batch   bridge.Batch
	ctx     *cancellable // made when it is first asked for

	next *AsyncStream // in its waitShard
}

// cause is why a context is cancelled.
type cause uint8

const (
	causeNone cause = iota
	causeGone
	causeReturned
)

func (c cause) err() error {
	if c == causeGone {
		return ErrStreamGone
	}
	return errReturned
}

type cancellable struct {
	context.Context
	cancel context.CancelCauseFunc
}

// asyncContext is the context of an asynchronous function. Most functions never
// ask for what a real one is made of.
type asyncContext AsyncStream

func (c *asyncContext) real() *cancellable {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		if c.cause != causeNone {
			cancel(c.cause.err())
		}
		c.ctx = &cancellable{ctx, cancel}
	}
	return c.ctx
}

// Deadline implements context.Context: the host's is not known.
func (c *asyncContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (c *asyncContext) Done() <-chan struct{} { return c.real().Done() }

// Value implements context.Context. The real one answers to what context.Cause asks.
func (c *asyncContext) Value(key any) any { return c.real().Value(key) }

// Err implements context.Context.
func (c *asyncContext) Err() error {
	c.mu.Lock()
	ctx, cause := c.ctx, c.cause
	c.mu.Unlock()
	switch {
	case ctx != nil:
		return ctx.Err()
	case cause != causeNone:
		return context.Canceled
	}
	return nil
}

func (c *asyncContext) String() string { return "proxyfilter.AsyncStream context" }

// context is what the function gets. One that never blocks has no use for a
// context that can be cancelled: if its stream is dead, its decision is answered with STALE.
func (a *AsyncStream) context() context.Context {
	if a.waits {
		return (*asyncContext)(a)
	}
	return context.Background()
}

// gone cancels the context because the stream is gone, unless it is cancelled.
func (a *AsyncStream) gone() {
	a.mu.Lock()
	if a.cause == causeNone {
		a.cause = causeGone
	}
	ctx := a.ctx
	a.mu.Unlock()
	if ctx != nil {
		ctx.cancel(ErrStreamGone)
	}
}

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
	j := &bridge.Job{Ev: *ev, Fields: cloneRaw(c.Headers.F), Trailers: cloneRaw(c.Trailers.F)}
	if len(c.Chunks) > 0 {
		j.Body = Body{stamp: stampOf(c.Call), c: c}.Bytes()
	}
	if len(c.Attrs) > 0 {
		j.Attrs = append(j.Attrs, c.Attrs...)
		for i := range j.Attrs {
			j.Attrs[i].Value = clone(j.Attrs[i].Value)
		}
	}
	c.async = (&AsyncStream{}).init(c.inst, c.cfg, fn, j)
	return actPending
}

func (a *AsyncStream) init(in *instance, cfg *config, fn func(context.Context, *AsyncStream), j *bridge.Job) *AsyncStream {
	ev := &j.Ev
	a.inst, a.cfg, a.fn, a.job = in, cfg, fn, j
	a.token, a.stream, a.offset = ev.Token, ev.Stream, ev.BodyOffset
	a.worker, a.phase, a.flags = ev.Worker, Phase(ev.Phase), ev.Flags
	return a
}

// asyncChunk is how many streams of functions that never block are allocated
// together. Each is used once: whoever keeps one reaches nobody else's.
const asyncChunk = 16

type asyncStreams struct{ list []AsyncStream }

func fresh(r *bridge.Runner) *AsyncStream {
	s, ok := r.X.(*asyncStreams)
	if !ok {
		s = &asyncStreams{}
		r.X = s
	}
	if len(s.list) == 0 {
		s.list = make([]AsyncStream, asyncChunk)
	}
	a := &s.list[0]
	s.list = s.list[1:]
	return a
}

// launch starts the function after its event has been found in order.
func (a *AsyncStream) launch() {
	if a.waits = !a.cfg.decl.Nonblocking; a.waits {
		a.inst.wait(a)
	}
	a.inst.host.Spawn(a.worker, a.cfg.decl.Nonblocking, (*asyncRun)(a))
}

// abandon is for a function that never started.
func (a *AsyncStream) abandon() {
	a.decided, a.over = true, true
}

// asyncRun is a stream whose function is to be run.
type asyncRun AsyncStream

// Run implements bridge.Runnable.
func (r *asyncRun) Run() { (*AsyncStream)(r).run() }

// RunJob runs an event that was copied on the loop thread, or answers what runs it.
func (in *instance) RunJob(r *bridge.Runner, j *bridge.Job, b bridge.Batch) (bridge.JobState, bridge.Runnable) {
	cfg := in.config(j.Ev.Config)
	var fn func(context.Context, *AsyncStream)
	if cfg != nil && cfg.h != nil && j.Ev.Phase < uint32(phaseCount) {
		fn = cfg.h.async[j.Ev.Phase]
	}
	if fn != nil && !cfg.decl.Nonblocking {
		a := (&AsyncStream{}).init(in, cfg, fn, j)
		a.lent, a.waits = true, true
		if in.wait(a) {
			return bridge.JobWaits, (*asyncRun)(a)
		}
		return bridge.JobOver, nil
	}
	a := fresh(r).init(in, cfg, fn, j)
	a.inline, a.batch = true, b
	if fn != nil {
		a.run()
	} else {
		_ = a.fail(fmt.Sprintf("job for the configuration %d, which has no asynchronous method for the %s", j.Ev.Config, a.phase))
		a.end()
	}
	if a.held {
		return bridge.JobDecided, nil
	}
	return bridge.JobOver, nil
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
			a.end()
		}
	}()
	a.fn(a.context(), a)
	if !a.ended() {
		// If the stream died meanwhile the host answers STALE, and nothing is logged.
		_ = a.fail(fmt.Sprintf("an asynchronous function of filter %q returned without a decision", a.cfg.env.Filter))
		a.end()
	}
	returned = true
}

// ended ends a unless it is undecided.
func (a *AsyncStream) ended() bool {
	a.mu.Lock()
	if !a.decided {
		a.mu.Unlock()
		return false
	}
	a.endLocked()
	return true
}

func (a *AsyncStream) end() {
	a.mu.Lock()
	a.endLocked()
}

// endLocked unlocks a.
func (a *AsyncStream) endLocked() {
	a.over = true
	b, j, ctx := a.batch, a.job, a.ctx
	a.batch, a.job = nil, nil
	if a.cause == causeNone {
		a.cause = causeReturned
	}
	a.mu.Unlock()
	if b != nil && !a.inline {
		a.inst.host.Discard(b)
	}
	if ctx != nil {
		ctx.cancel(errReturned)
	}
	if a.lent {
		a.inst.host.FreeJob(j)
	}
}

// decide closes the batch with an action and hands it over.
func (a *AsyncStream) decide(act Action, fill func(r *bridge.Result, e *bridge.Encoder)) error {
	return a.conclude(act, fill, false)
}

// conclude is decide. At once means that the host must have the decision before
// anything else that the function does.
func (a *AsyncStream) conclude(act Action, fill func(r *bridge.Result, e *bridge.Encoder), atOnce bool) error {
	a.mu.Lock()
	if a.decided {
		a.mu.Unlock()
		return ErrDecided
	}
	a.decided = true
	if a.inline && atOnce {
		// The caller of RunJob keeps its batch. What is in it counts no more.
		a.batch = nil
	}
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
	if a.inline && !atOnce {
		a.held = true
		a.mu.Unlock()
		return err
	}
	a.mu.Unlock()
	if a.waits {
		a.inst.forget(a.token)
	}
	code := a.inst.host.Complete(a.token, b, atOnce)
	switch {
	// A positive status is a success, also one that this version does not know.
	case code >= bridge.OK:
		return err
	case code == bridge.ErrStale:
		a.gone()
		return ErrStreamGone
	}
	// The token is still alive: the host did not understand the batch.
	text := fmt.Sprintf("the host refused the decision of an asynchronous function of filter %q with %s", a.cfg.env.Filter, statusName(code))
	fb := a.inst.host.NewBatch(a.worker)
	fb.Result().Action = uint32(actError)
	fb.Enc().SetError(text)
	a.inst.host.Complete(a.token, fb, true)
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

// edit answers the batch's encoder with the lock held, or nil if it is too late.
func (a *AsyncStream) edit() *bridge.Encoder {
	a.mu.Lock()
	if a.decided {
		a.mu.Unlock()
		return nil
	}
	return a.open().Enc()
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
