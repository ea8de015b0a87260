package proxyfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
