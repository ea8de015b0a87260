package proxyfilter

import (
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

func init() {
	bridge.New = func(h bridge.Host) bridge.Instance { return newInstance(h) }
	bridge.Filters = Registered
	bridge.Inspect = func(i bridge.Instance, config, user uint64) []any { return i.(*instance).inspect(config, user) }
}

// instance is this library for one host.
type instance struct {
	host bridge.Host

	mu      sync.Mutex
	configs atomic.Pointer[[]*config] // index: low half of the id, less 1
	gens    []uint32

	streams slab
	waiting [16]waitShard
	live    liveStreams
}

func newInstance(h bridge.Host) *instance {
	in := &instance{host: h}
	in.configs.Store(new([]*config))
	in.live.m = map[uint64]*liveStream{}
	return in
}

func (in *instance) config(id uint64) *config {
	list := *in.configs.Load()
	if i := uint32(id) - 1; int(i) < len(list) {
		if c := list[i]; c != nil && c.id == id {
			return c
		}
	}
	return nil
}

func (in *instance) add(c *config) {
	in.mu.Lock()
	defer in.mu.Unlock()
	list := append([]*config(nil), *in.configs.Load()...)
	i := 0
	for i < len(list) && list[i] != nil {
		i++
	}
	if i == len(list) {
		list, in.gens = append(list, nil), append(in.gens, 0)
	}
	c.id = uint64(in.gens[i])<<32 | uint64(i+1)
	list[i] = c
	in.configs.Store(&list)
}

func (in *instance) drop(id uint64) *config {
	in.mu.Lock()
	defer in.mu.Unlock()
	c := in.config(id)
	if c != nil {
		list := append([]*config(nil), *in.configs.Load()...)
		i := uint32(id) - 1
		list[i] = nil
		in.gens[i]++
		in.configs.Store(&list)
	}
	return c
}

// ConfigDrop is on_config_drop.
func (in *instance) ConfigDrop(id uint64) {
	defer in.barrier("closing a filter")
	if c := in.drop(id); c != nil {
		c.close()
	}
}

// barrier is deferred where a panic has no stream to fail.
func (in *instance) barrier(doing string) {
	if p := recover(); p != nil {
		in.panicked(p, doing)
	}
}

// panicked logs a panic with its stack, in one line, and answers its text without.
func (in *instance) panicked(p any, where string) string {
	text := fmt.Sprintf("panic: %v (%s)", p, where)
	stack := string(debug.Stack())
	// What lies above the call of panic is the barrier itself.
	if _, below, ok := strings.Cut(stack, "\npanic("); ok {
		if _, frames, ok := strings.Cut(below, "\n\t"); ok {
			_, stack, _ = strings.Cut(frames, "\n")
		}
	}
	const limit = 3000 // a host may cut at 4096
	if len(stack) > limit {
		stack = stack[:limit]
	}
	stack = strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(stack), "\n\t", " at "), "\n", "; ")
	in.host.Log(bridge.LogError, text+"; stack: "+stack)
	return text
}

func (in *instance) state(call *bridge.Call) *callState {
	if c, ok := call.X.(*callState); ok {
		return c
	}
	c := &callState{Call: call, inst: in}
	call.X = c
	return c
}

// OnEvent is on_event.
func (in *instance) OnEvent(call *bridge.Call) {
	c := in.state(call)
	c.Gen++
	c.async, c.body.valid, c.body.cursor = nil, false, 0
	cfg := in.config(call.Ev.Config)
	if cfg == nil {
		c.fault = fmt.Sprintf("event for the configuration %d, which is not in force", call.Ev.Config)
		c.finish(actError)
		return
	}
	c.cfg = cfg
	done := false
	defer func() {
		c.Gen++
		if !done {
			c.caught(recover())
		}
	}()
	c.finish(c.dispatch())
	done = true
}

// caught turns a panic of a phase method into an error of its stream.
func (c *callState) caught(p any) {
	if p == nil {
		// runtime.Goexit: the process dies right after this, whatever is done here.
		c.inst.host.Log(bridge.LogError, "runtime.Goexit in a filter's phase method ends the process; call it in goroutines only")
		return
	}
	c.fault = c.inst.panicked(p, fmt.Sprintf("filter %q, %s", c.cfg.env.Filter, Phase(c.Ev.Phase)))
	c.finish(actError)
}

// dispatch calls the method of the event's phase.
func (c *callState) dispatch() Action {
	h := c.cfg.h
	if h == nil {
		var fault string
		if h, fault = c.inst.streamObject(c); h == nil {
			return c.failf("%s", fault)
		}
	}
	s := Stream{stamp: stampOf(c.Call), c: c}
	switch Phase(c.Ev.Phase) {
	case PhaseRequestHeaders:
		if h.reqHeaders != nil {
			return h.reqHeaders.OnRequestHeaders(s, c.headers())
		}
	case PhaseResponseHeaders:
		if h.respHeaders != nil {
			return h.respHeaders.OnResponseHeaders(s, c.headers())
		}
	case PhaseRequestBody:
		if h.reqBody != nil {
			return h.reqBody.OnRequestBody(s, s.Body())
		}
		if h.wholeReq != nil {
			return c.whole(s, h.wholeReq.ProxyGolangRequest)
		}
	case PhaseResponseBody:
		if h.respBody != nil {
			return h.respBody.OnResponseBody(s, s.Body())
		}
		if h.wholeResp != nil {
			return c.whole(s, h.wholeResp.ProxyGolangResponse)
		}
	case PhaseRequestTrailers:
		if h.reqTrailers != nil {
			return h.reqTrailers.OnRequestTrailers(s, c.trailers())
		}
	case PhaseResponseTrailers:
		if h.respTrailers != nil {
			return h.respTrailers.OnResponseTrailers(s, c.trailers())
		}
	case PhaseLog:
		if h.log != nil {
			h.log.OnLog(s, End{c.Ev.Arg})
			return Continue
		}
	case PhaseWake:
		if c.Ev.Flags&bridge.EvWritable != 0 {
			c.inst.live.writable(c.Ev.Stream)
		}
		if h.wake != nil {
			return h.wake.OnWake(s, c.Ev.Arg)
		}
		return Continue
	}
	if p := c.Ev.Phase; p < uint32(phaseCount) && h.async[p] != nil {
		return c.startAsync(h.async[p])
	}
	return c.failf("event for the %s, which filter %q did not subscribe to", Phase(c.Ev.Phase), c.cfg.env.Filter)
}

// finish writes the verdict into the result.
func (c *callState) finish(act Action) {
	r := c.Res
	if act == Continue && c.async == nil && c.Enc.Plain() && c.fault == "" && r.MoreBytes|r.PendNs == 0 {
		r.Action = bridge.ActContinue
		return
	}
	c.finishOther(act)
}

func (c *callState) finishOther(act Action) {
	r := c.Res
	if c.fault == "" && c.Enc.Err() == nil && act >= Continue && act <= actError &&
		(act == actPending) == (c.async != nil) && (act != actReply || c.Enc.Reply() != 0) && act != actError {
		switch act {
		case actPending:
			if r.Flags != 0 || r.Unsubscribe != 0 || r.BodyMode != [2]uint32{} {
				c.fault = "Async after the event was changed: what waits can't change subscriptions, body modes or flags"
				c.failed(act)
				return
			}
			if r.User == 0 {
				r.User = bridge.UserInterest
			}
			c.async.launch()
		case actMore:
		default:
			r.MoreBytes = 0
		}
		if act != actReply && c.Enc.Reply() != 0 {
			c.Enc.DropReply()
		}
		if act != actPending {
			r.PendNs = 0
		}
		r.Action = uint32(act)
		return
	}
	c.failed(act)
}

func (c *callState) failed(act Action) {
	r := c.Res
	text := c.fault
	switch {
	case text != "":
	case c.Enc.Err() != nil:
		text = c.Enc.Err().Error()
	case act == 0:
		text = "the method returned the zero Action: return Continue or what a method of Stream returned"
	case c.async != nil:
		text = "the method called Async and did not return its action"
	case act == actPending:
		text = "the method returned PENDING without calling Async"
	case act == actReply:
		text = "the method returned REPLY without calling Reply"
	default:
		text = fmt.Sprintf("the method returned the action %d", act)
	}
	if c.async != nil {
		c.async.abandon()
		c.async = nil
	}
	c.Enc.Drop()
	r.Flags, r.Unsubscribe, r.BodyMode, r.MoreBytes, r.PendNs = 0, 0, [2]uint32{}, 0, 0
	c.Enc.SetError(text)
	r.Action = uint32(actError)
	c.fault = ""
}

// OnStreamEnd is on_stream_end.
func (in *instance) OnStreamEnd(cfg, user, stream uint64, worker uint32) {
	defer in.barrier("OnStreamEnd")
	in.live.end(stream)
	if user <= bridge.UserInterest {
		return
	}
	if obj := in.streams.take(user); obj != nil {
		if e, ok := obj.v.(StreamEnder); ok {
			e.OnStreamEnd()
		}
		if c := in.config(cfg); c != nil {
			c.recycle(obj)
		}
	}
}

// OnWorker is on_worker.
func (in *instance) OnWorker(worker uint32, up bool) {}

// inspect answers what a filter could have kept views in.
func (in *instance) inspect(config, user uint64) (v []any) {
	if c := in.config(config); c != nil {
		v = append(v, c.filter)
	}
	if o := in.streams.get(user); o != nil {
		v = append(v, o.v)
	}
	return v
}
