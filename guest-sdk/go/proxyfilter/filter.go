package proxyfilter

import "context"

// A Filter handles the traffic of one configuration. It is any value with one or
// more of the phase methods below; the SDK subscribes to exactly the phases whose
// methods the value has, and a phase without a method costs nothing.
//
// One Filter serves all streams of its configuration, on all workers at once, so
// its methods must be safe for concurrent use. A Filter that has the method
//
//	NewStream() any
//
// gets an object of its own for each stream instead, see [StreamFactory].
//
// The methods whose name does not end in Async run on the proxy's event loop:
// they must not block. What may block belongs into [Stream.Async] or into one of
// the Async methods.
type Filter = any

// RequestHeadersFilter is called with the header fields of a request.
type RequestHeadersFilter interface {
	OnRequestHeaders(s Stream, h Headers) Action
}

// RequestBodyFilter is called with bytes of a request's body, see [Body].
type RequestBodyFilter interface {
	OnRequestBody(s Stream, b Body) Action
}

// RequestTrailersFilter is called with the trailer fields of a request.
type RequestTrailersFilter interface {
	OnRequestTrailers(s Stream, t Headers) Action
}

// ResponseHeadersFilter is called with the header fields of a response.
type ResponseHeadersFilter interface {
	OnResponseHeaders(s Stream, h Headers) Action
}

// ResponseBodyFilter is called with bytes of a response's body, see [Body].
type ResponseBodyFilter interface {
	OnResponseBody(s Stream, b Body) Action
}

// ResponseTrailersFilter is called with the trailer fields of a response.
type ResponseTrailersFilter interface {
	OnResponseTrailers(s Stream, t Headers) Action
}

// LogFilter is called once when both directions of a stream have ended.
// [Stream.Headers] are those of the response, [Stream.PeerHeaders] those of the
// request. Only metadata and metrics may be written here.
type LogFilter interface {
	OnLog(s Stream, e End)
}

// WakeFilter is called after [Ref.Wake]. Calls that coincide are joined, their
// arguments or-ed.
type WakeFilter interface {
	OnWake(s Stream, arg uint64) Action
}

// The asynchronous phases. The stream waits while the method runs on a goroutine
// of its own; the proxy's event loop does not enter Go for it at all where the
// host makes that possible. See [AsyncStream] for what a must be told before the
// method returns. The context is cancelled, with the cause, when the stream dies.
//
// A filter has the synchronous or the asynchronous method of a phase, not both.
// The body arrives whole unless a [Declaration] says otherwise.
type (
	RequestHeadersAsyncFilter interface {
		OnRequestHeadersAsync(ctx context.Context, a *AsyncStream)
	}
	RequestBodyAsyncFilter interface {
		OnRequestBodyAsync(ctx context.Context, a *AsyncStream)
	}
	ResponseHeadersAsyncFilter interface {
		OnResponseHeadersAsync(ctx context.Context, a *AsyncStream)
	}
	ResponseBodyAsyncFilter interface {
		OnResponseBodyAsync(ctx context.Context, a *AsyncStream)
	}
)

// WholeRequestFilter is the shape of the first proxy-golang: one call with the
// whole request, one answer. It subscribes to the body alone, in mode whole: one
// crossing per request.
type WholeRequestFilter interface {
	ProxyGolangRequest(headers HeaderMap, body []byte, trailers HeaderMap) Message
}

// WholeResponseFilter is [WholeRequestFilter] for responses.
type WholeResponseFilter interface {
	ProxyGolangResponse(headers HeaderMap, body []byte, trailers HeaderMap) Message
}

// StreamFactory makes an object for each stream. The phases are detected from
// the methods of what NewStream returns, which must always be of one type; the
// SDK calls it once at configuration time for that.
//
// An object with the method OnStreamEnd() has it called as the last of all. An
// object with the method Reset() is reset and used again for another stream
// instead of being left to the garbage collector.
type StreamFactory interface {
	NewStream() any
}

// StreamEnder is told that its stream is gone.
type StreamEnder interface{ OnStreamEnd() }

// StreamResetter is used again for another stream after Reset.
type StreamResetter interface{ Reset() }

// Phase is a step in the life of a stream.
type Phase uint32

// The phases.
const (
	PhaseRequestHeaders Phase = 1 + iota
	PhaseRequestBody
	PhaseRequestTrailers
	PhaseResponseHeaders
	PhaseResponseBody
	PhaseResponseTrailers
	PhaseLog
	PhaseWake
	phaseCount
)

var phaseNames = [phaseCount]string{"none", "request headers", "request body", "request trailers",
	"response headers", "response body", "response trailers", "log", "wake"}

func (p Phase) String() string {
	if p < phaseCount {
		return phaseNames[p]
	}
	return "unknown phase"
}

func (p Phase) bit() uint64 { return 1 << p }

func (p Phase) response() bool { return p >= PhaseResponseHeaders && p <= PhaseResponseTrailers }

func (p Phase) body() bool { return p == PhaseRequestBody || p == PhaseResponseBody }

// handlers is a value's phase methods, looked up once.
type handlers struct {
	reqHeaders   RequestHeadersFilter
	reqBody      RequestBodyFilter
	reqTrailers  RequestTrailersFilter
	respHeaders  ResponseHeadersFilter
	respBody     ResponseBodyFilter
	respTrailers ResponseTrailersFilter
	log          LogFilter
	wake         WakeFilter

	async [phaseCount]func(ctx context.Context, a *AsyncStream)

	wholeReq  WholeRequestFilter
	wholeResp WholeResponseFilter
}

func lookup(v any) *handlers {
	h := &handlers{}
	h.reqHeaders, _ = v.(RequestHeadersFilter)
	h.reqBody, _ = v.(RequestBodyFilter)
	h.reqTrailers, _ = v.(RequestTrailersFilter)
	h.respHeaders, _ = v.(ResponseHeadersFilter)
	h.respBody, _ = v.(ResponseBodyFilter)
	h.respTrailers, _ = v.(ResponseTrailersFilter)
	h.log, _ = v.(LogFilter)
	h.wake, _ = v.(WakeFilter)
	h.wholeReq, _ = v.(WholeRequestFilter)
	h.wholeResp, _ = v.(WholeResponseFilter)
	if f, ok := v.(RequestHeadersAsyncFilter); ok {
		h.async[PhaseRequestHeaders] = f.OnRequestHeadersAsync
	}
	if f, ok := v.(RequestBodyAsyncFilter); ok {
		h.async[PhaseRequestBody] = f.OnRequestBodyAsync
	}
	if f, ok := v.(ResponseHeadersAsyncFilter); ok {
		h.async[PhaseResponseHeaders] = f.OnResponseHeadersAsync
	}
	if f, ok := v.(ResponseBodyAsyncFilter); ok {
		h.async[PhaseResponseBody] = f.OnResponseBodyAsync
	}
	return h
}

// phases answers the phases with a synchronous and with an asynchronous method,
// and the name of a phase that has more than one.
func (h *handlers) phases() (direct, async uint64, twice string) {
	add := func(p Phase, have bool) {
		if have {
			if direct&p.bit() != 0 {
				twice = p.String()
			}
			direct |= p.bit()
		}
	}
	add(PhaseRequestHeaders, h.reqHeaders != nil)
	add(PhaseRequestBody, h.reqBody != nil)
	add(PhaseRequestBody, h.wholeReq != nil)
	add(PhaseRequestTrailers, h.reqTrailers != nil)
	add(PhaseResponseHeaders, h.respHeaders != nil)
	add(PhaseResponseBody, h.respBody != nil)
	add(PhaseResponseBody, h.wholeResp != nil)
	add(PhaseResponseTrailers, h.respTrailers != nil)
	add(PhaseLog, h.log != nil)
	add(PhaseWake, h.wake != nil)
	for p, f := range h.async {
		if f != nil {
			async |= Phase(p).bit()
			if direct&Phase(p).bit() != 0 {
				twice = Phase(p).String()
			}
		}
	}
	return direct, async, twice
}
