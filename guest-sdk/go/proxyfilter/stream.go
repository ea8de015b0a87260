package proxyfilter

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Action is a filter's verdict on an event. The zero Action is not valid: a
// method that returns it fails its stream.
type Action uint32

// Continue applies the changes and lets the message go on. All other actions are
// made by methods of [Stream].
const Continue = Action(bridge.ActContinue)

const (
	actPending = Action(bridge.ActPending)
	actMore    = Action(bridge.ActMore)
	actReply   = Action(bridge.ActReply)
	actReset   = Action(bridge.ActReset)
	actError   = Action(bridge.ActError)
)

// callState is one worker's current event.
type callState struct {
	*bridge.Call
	inst  *instance
	cfg   *config
	async *AsyncStream
	fault string
	body  struct {
		total  uint64
		cursor uint64
		valid  bool // total has been counted
	}
}

// Stream is the event in hand: what every phase method gets first. It and all
// that comes from it is valid only until that method returns, and only on that
// method's goroutine. What must last longer is [Stream.Ref] and [AsyncStream].
type Stream struct {
	stamp
	c *callState
}

// Phase is the phase of this event.
func (s Stream) Phase() Phase { return Phase(s.c.Ev.Phase) }

// Headers are the header fields of this event's direction, where the event has
// them: in header phases, in bodies that came whole, and (of the response) in the log.
func (s Stream) Headers() Headers {
	s.check(s.c.Call)
	return s.c.headers()
}

// Trailers are the trailer fields of this event's direction.
func (s Stream) Trailers() Headers {
	s.check(s.c.Call)
	return s.c.trailers()
}

// PeerHeaders are the header fields of the other direction: the request's in a
// response event if [Declaration].PeerHeaders is set, and always in the log. They
// can't be changed.
func (s Stream) PeerHeaders() Headers {
	s.check(s.c.Call)
	return Headers{stampOf(s.c.Call), &s.c.PeerHeaders}
}

// PeerTrailers are the trailer fields of the other direction.
func (s Stream) PeerTrailers() Headers {
	s.check(s.c.Call)
	return Headers{stampOf(s.c.Call), &s.c.PeerTrailers}
}

// Body is this event's view of the body.
func (s Stream) Body() Body {
	s.check(s.c.Call)
	return Body{stamp: stampOf(s.c.Call), c: s.c}
}

func (c *callState) headers() Headers {
	return Headers{stampOf(c.Call), &c.Headers}
}

func (c *callState) trailers() Headers {
	return Headers{stampOf(c.Call), &c.Trailers}
}

func (s Stream) flag(f uint32) bool {
	s.check(s.c.Call)
	return s.c.Ev.Flags&f != 0
}

// EndStream says that nothing follows in this direction.
func (s Stream) EndStream() bool { return s.flag(bridge.EvEndStream) }

// EndUnknown says that the host can't know yet whether something follows.
func (s Stream) EndUnknown() bool { return s.flag(bridge.EvEOSUnknown) }

// CanReply says that a local reply can still be made. It is judged again when
// the reply is applied.
func (s Stream) CanReply() bool { return s.flag(bridge.EvCanReply) }

// HeadersHeld says that the header fields have not left yet and may be changed
// in this body or trailers event.
func (s Stream) HeadersHeld() bool { return s.flag(bridge.EvHeadersHeld) }

// OverLimit says that the body is larger than the limit for holding it.
func (s Stream) OverLimit() bool { return s.flag(bridge.EvOverLimit) }

// LocalOrigin says that the response was made by the proxy or by another filter.
func (s Stream) LocalOrigin() bool { return s.flag(bridge.EvLocalOrigin) }

// Upgraded says that the stream has become a tunnel.
func (s Stream) Upgraded() bool { return s.flag(bridge.EvUpgraded) }

// Redirected says that the proxy has redirected the request internally.
func (s Stream) Redirected() bool { return s.flag(bridge.EvRedirected) }

// Subrequest says that the stream was started by the proxy for another one.
func (s Stream) Subrequest() bool { return s.flag(bridge.EvSubrequest) }

// Resumed says that this is the first event of its direction after an
// asynchronous decision.
func (s Stream) Resumed() bool { return s.flag(bridge.EvResumed) }

// Worker is the index of the event loop.
func (s Stream) Worker() int {
	s.check(s.c.Call)
	return int(s.c.Ev.Worker)
}

// AttrView is the value of a declared attribute: a view that dies with this event.
func (s Stream) AttrView(name string) (string, bool) {
	s.check(s.c.Call)
	for i, w := range s.c.cfg.attrs {
		if w.Name == name {
			if i < len(s.c.Attrs) && s.c.Attrs[i].Present {
				return s.c.Attrs[i].Value, true
			}
			return "", false
		}
	}
	return "", false
}

// Attr is the value of an attribute that the filter declared in its
// [Declaration]; "" where it is absent.
func (s Stream) Attr(name string) string {
	v, _ := s.AttrView(name)
	return clone(v)
}

// Reply answers the request here instead of letting it go on:
//
//	return s.Reply(proxyfilter.Reply{Status: 403, Body: []byte("no\n")})
func (s Stream) Reply(r Reply) Action {
	s.check(s.c.Call)
	if text := r.fault(); text != "" {
		return s.c.failf("%s", text)
	}
	s.c.Enc.SetReply(r.Status, r.flags(), r.GRPCStatus, r.Header, r.Trailers, r.Body, r.Details)
	return actReply
}

// Reset cuts the stream in both directions without a reply.
func (s Stream) Reset() Action { return actReset }

// Fail ends the stream by the host's failure mode. The text goes to the proxy's
// log, never to a client.
func (s Stream) Fail(err error) Action {
	s.check(s.c.Call)
	if err == nil {
		return s.c.failf("failed without an error")
	}
	return s.c.failf("%v", err)
}

// failf notes why the event fails; the text is written when the method returned.
func (c *callState) failf(format string, args ...any) Action {
	if c.fault == "" {
		c.fault = fmt.Sprintf(format, args...)
	}
	return actError
}

// More keeps what the filter has not passed, dropped or changed, and asks for
// another event when at least n more bytes of the body have come; 0 leaves that
// to the host. In a headers event it holds the headers until the body comes.
// At the end of a body there is no more.
func (s Stream) More(n uint64) Action {
	s.check(s.c.Call)
	c := s.c
	switch p := s.Phase(); p {
	case PhaseRequestHeaders, PhaseResponseHeaders:
		f, body := bridge.FHoldRequest, PhaseRequestBody
		if p == PhaseResponseHeaders {
			f, body = bridge.FHoldResponse, PhaseResponseBody
		}
		if !c.cfg.features.Has(f) {
			return c.failf("More in a %s event needs the feature %s, which this host lacks here", p, bridge.FeatureName(f))
		}
		if c.cfg.subscribe&body.bit() == 0 {
			return c.failf("More in a %s event needs a method for the %s", p, body)
		}
	case PhaseRequestBody, PhaseResponseBody:
		if c.Ev.Flags&bridge.EvBodyEnd != 0 {
			return c.failf("More at the end of the body: check Body.End first")
		}
	default:
		return c.failf("More in a %s event", p)
	}
	c.Res.MoreBytes = n
	return actMore
}

// Async lets fn decide. The stream waits, without blocking the proxy, while fn
// runs on a goroutine where nothing else waits for it:
//
//	return s.Async(func(ctx context.Context, a *proxyfilter.AsyncStream) {
//		user, err := lookup(ctx, a.Get("authorization"))
//		…
//		a.Continue()
//	})
//
// The phase must be declared with [MayPend]. Changes belong on a, not on s: an
// event that was changed before can't wait. fn must not touch s, or any view of it.
func (s Stream) Async(fn func(ctx context.Context, a *AsyncStream)) Action {
	s.check(s.c.Call)
	return s.c.startAsync(fn)
}

// PendTimeout wishes a deadline for this Async; the host's limit applies.
func (s Stream) PendTimeout(d time.Duration) {
	s.check(s.c.Call)
	s.c.Res.PendNs = uint64(max(d, 0))
}

// Unsubscribe stops events of these phases for this stream.
func (s Stream) Unsubscribe(phases ...Phase) {
	s.check(s.c.Call)
	for _, p := range phases {
		s.c.Res.Unsubscribe |= p.bit()
	}
}

// SetRequestBodyMode changes how the request's body is delivered from here on. It
// may be chosen freely in the request's headers event; later only what the
// specification's table of body modes allows.
func (s Stream) SetRequestBodyMode(m BodyMode) {
	s.check(s.c.Call)
	s.c.Res.BodyMode[bridge.DirRequest] = uint32(m)
}

// SetResponseBodyMode is SetRequestBodyMode for the response, until the
// response's headers event.
func (s Stream) SetResponseBodyMode(m BodyMode) {
	s.check(s.c.Call)
	s.c.Res.BodyMode[bridge.DirResponse] = uint32(m)
}

// Resizes announces, in a headers event, that the length of this direction's
// body will change.
func (s Stream) Resizes() {
	s.check(s.c.Call)
	s.c.Res.Flags |= bridge.ResResizes
}

// Flush asks the host to send what was passed before the next event.
func (s Stream) Flush() {
	s.check(s.c.Call)
	s.c.Res.Flags |= bridge.ResFlush
}

// SetMetadata sets a value that later events, also of other filters, see as the
// attribute metadata.<namespace>.<key>. The empty namespace is the filter's own.
func (s Stream) SetMetadata(namespace, key, value string) {
	s.check(s.c.Call)
	s.c.Enc.Metadata(namespace, key, value)
}

// RouteToCluster sends the request to a cluster that the operator allowed.
func (s Stream) RouteToCluster(name string) {
	s.check(s.c.Call)
	s.c.Enc.Route("cluster", name)
}

// RecomputeRoute lets the host choose the route again after the changes.
func (s Stream) RecomputeRoute() {
	s.check(s.c.Call)
	s.c.Enc.Route("recompute", "")
}

// Record records a value in a metric of [Env.Counter], [Env.Gauge] or [Env.Histogram].
func (s Stream) Record(m Metric, value int64) {
	s.check(s.c.Call)
	m.encode(&s.c.Enc, value)
}

// Ref names the stream for use from any goroutine, also after it has died.
func (s Stream) Ref() Ref {
	s.check(s.c.Call)
	return Ref{inst: s.c.inst, stream: s.c.Ev.Stream, worker: s.c.Ev.Worker}
}

// Log is the logger of this configuration; it writes to the proxy's log.
func (s Stream) Log() *slog.Logger { return s.c.cfg.env.Log }

// End says why and how a stream ended.
type End struct{ arg uint64 }

// Reason is why the stream ended.
func (e End) Reason() EndReason { return EndReason(e.arg & 0xff) }

// Request says how the request's direction ended.
func (e End) Request() EndState { return EndState(e.arg >> 8 & 0xf) }

// Response says how the response's direction ended.
func (e End) Response() EndState { return EndState(e.arg >> 12 & 0xf) }

// EndReason is why a stream ended.
type EndReason uint8

// The reasons.
const (
	EndComplete EndReason = 1 + iota
	EndClientAbort
	EndUpstreamReset
	EndTimeout
	EndReplied
	EndError
)

func (r EndReason) String() string {
	if n := [...]string{"unknown", "complete", "client abort", "upstream reset", "timeout", "replied", "error"}; int(r) < len(n) {
		return n[r]
	}
	return "unknown"
}

// EndState is how one direction of a stream ended.
type EndState uint8

// The ends of a direction.
const (
	NeverBegan EndState = iota
	Completed
	CutBySender
	CutByReceiver
	CutByProxy
)

func (r EndState) String() string {
	if n := [...]string{"never began", "complete", "cut by its sender", "cut by its receiver", "cut by the proxy"}; int(r) < len(n) {
		return n[r]
	}
	return "unknown"
}
