package proxyfiltertest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// Field is a header or trailer field.
type Field = proxyfilter.Field

// Request is a request as a client sends it, or as the upstream gets it.
type Request struct {
	// Method is GET, or POST if there is a body, unless set. Path is / and
	// Authority example.com.
	Method, Path, Authority string
	Header                  []Field
	Body                    []byte
	Trailers                []Field

	pseudo []Field
}

// Get is the value of the first field of this name, "" if there is none.
func (r *Request) Get(name string) string { return get(append(r.pseudo, r.Header...), name) }

// Response is what the upstream answers.
type Response struct {
	// Status is 200 unless set.
	Status   int
	Header   []Field
	Body     []byte
	Trailers []Field
}

// Upstream answers requests.
type Upstream func(r *Request) Response

// Exchange is what came of a request.
type Exchange struct {
	// Status, Header, Body and Trailers are what the client got. Status is 0 if the
	// stream was cut.
	Status   int
	Header   []Field
	Body     []byte
	Trailers []Field
	// Upstream is what the upstream got; nil if it was not asked.
	Upstream *Request
	// Replied says that the filter answered.
	Replied bool
	// Details are those of its reply.
	Details string
	// Reset says that the stream was cut.
	Reset bool
	// Failure is the text of the filter's error; the client got 500, or was cut off.
	Failure string
	// Cancelled says that the test ended the stream.
	Cancelled bool
	// Events are the phases that were delivered.
	Events []proxyfilter.Phase
	// Metadata is by namespace and key, joined by a dot.
	Metadata map[string]string
	// Cluster is what the filter routed to.
	Cluster string
}

// Get is the value of the first field of this name that the client got.
func (e *Exchange) Get(name string) string { return get(e.Header, name) }

// Has says whether the phase was delivered.
func (e *Exchange) Has(p proxyfilter.Phase) bool { return slices.Contains(e.Events, p) }

func get(f []Field, name string) string {
	for _, f := range f {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// stream is one exchange under way.
type stream struct {
	h      *Host
	ex     *Exchange
	handle uint64
	user   uint64
	events []proxyfilter.Phase
	unsub  uint64
	mode   [2]uint32
	req    []Field // as passed on, for the log
	resp   []Field
	trails [2][]Field

	steps, cancelAt int // the step at which the test ends the stream; 0: never

	// Under h.mu.
	applied []*verdict
	woken   bool
	wakeArg uint64
	full    bool
	slow    bool
}

// step counts what can happen to a stream and says when the test ends it.
func (s *stream) step() bool {
	s.steps++
	return s.cancelAt > 0 && s.steps >= s.cancelAt
}

// errCut ends the stream: by reply, reset, failure or cancel.
type errCut struct{}

// Do sends a request through the filter. A nil upstream answers 200 with the
// request's body.
func (h *Host) Do(req Request, up Upstream) *Exchange {
	h.t.Helper()
	return h.do(req, up, 0)
}

func (h *Host) do(req Request, up Upstream, cancelAt int) *Exchange {
	h.t.Helper()
	if up == nil {
		up = func(r *Request) Response { return Response{Body: r.Body} }
	}
	h.mu.Lock()
	s := &stream{h: h, ex: &Exchange{Metadata: map[string]string{}}, handle: h.next<<32 | 0xabc,
		mode: h.cfg.BodyMode, cancelAt: cancelAt, slow: h.intn(2) == 0}
	h.next++
	h.streams[s.handle] = s
	h.mu.Unlock()

	if s.exchange(&req, up) {
		s.end()
	}
	s.finish()
	s.ex.Events = s.events
	return s.ex
}

// exchange runs both directions; it answers whether they ended as they should.
func (s *stream) exchange(req *Request, up Upstream) (whole bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(errCut); !ok {
				panic(p)
			}
		}
	}()
	if req.Method == "" {
		req.Method = "GET"
		if len(req.Body) > 0 {
			req.Method = "POST"
		}
	}
	path, authority := req.Path, req.Authority
	if path == "" {
		path = "/"
	}
	if authority == "" {
		authority = "example.com"
	}
	in := message{fields: append([]Field{{Name: ":method", Value: req.Method}, {Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: authority}, {Name: ":path", Value: path}}, lowered(req.Header)...),
		body: req.Body, trailers: lowered(req.Trailers)}
	out := s.direction(bridge.DirRequest, in)
	r := &Request{Body: out.body, Trailers: out.trailers}
	s.req, s.trails[0] = out.fields, out.trailers
	for _, f := range out.fields {
		switch f.Name {
		case ":method":
			r.Method = f.Value
		case ":path":
			r.Path = f.Value
		case ":authority":
			r.Authority = f.Value
		}
		if strings.HasPrefix(f.Name, ":") {
			r.pseudo = append(r.pseudo, f)
		} else {
			r.Header = append(r.Header, f)
		}
	}
	s.ex.Upstream = r
	resp := up(r)
	if resp.Status == 0 {
		resp.Status = 200
	}
	in = message{fields: append([]Field{{Name: ":status", Value: strconv.Itoa(resp.Status)}}, lowered(resp.Header)...),
		body: resp.Body, trailers: lowered(resp.Trailers)}
	out = s.direction(bridge.DirResponse, in)
	s.resp, s.trails[1] = out.fields, out.trailers
	s.ex.Status, _ = strconv.Atoi(get(out.fields, ":status"))
	s.ex.Header, s.ex.Body, s.ex.Trailers = withoutPseudo(out.fields), out.body, out.trailers
	return true
}

func withoutPseudo(f []Field) []Field {
	return slices.DeleteFunc(slices.Clone(f), func(f Field) bool { return strings.HasPrefix(f.Name, ":") })
}

func lowered(f []Field) []Field {
	f = slices.Clone(f)
	for i := range f {
		f[i].Name = strings.ToLower(f[i].Name)
	}
	return f
}

// end delivers the log.
func (s *stream) end() {
	if s.h.cfg.Subscribe&^s.unsub>>bridge.PhaseLog&1 == 0 {
		return
	}
	arg := uint64(proxyfilter.EndComplete) | uint64(proxyfilter.Completed)<<8 | uint64(proxyfilter.Completed)<<12
	if s.ex.Replied {
		arg = uint64(proxyfilter.EndReplied) | uint64(proxyfilter.CutByProxy)<<8 | uint64(proxyfilter.Completed)<<12
	}
	v := s.h.deliver(s, &event{phase: bridge.PhaseLog, arg: arg, fields: s.resp, trailers: s.trails[1],
		peerFields: s.req, peerTrailers: s.trails[0]}, "response")
	if v == nil {
		s.ex.Cancelled = true
		return
	}
	for _, o := range v.ops {
		if o.kind != bridge.OpMetadataSet && o.kind != bridge.OpMetric {
			s.h.t.Errorf("operation %d in the log: only metadata and metrics are allowed there", o.kind)
		}
	}
	s.always(v)
}

// finish ends the stream: all its asynchronous functions, then its objects.
func (s *stream) finish() {
	h := s.h
	h.t.Helper()
	h.mu.Lock()
	var cancel []uint64
	for id, t := range h.tokens {
		if t.alive {
			t.alive = false
			cancel = append(cancel, id)
		}
	}
	delete(h.streams, s.handle)
	interest := h.interest
	h.mu.Unlock()
	for _, id := range cancel {
		h.inst.OnCancel(h.cfg.Config, s.user, s.handle, id, 0)
	}
	kept := bridge.Inspect(h.inst, h.cfg.Config, s.user)
	if s.user > bridge.UserInterest || s.user == bridge.UserInterest && interest > 0 {
		h.inst.OnStreamEnd(h.cfg.Config, s.user, s.handle, 0)
	}
	h.await("the end of the stream's asynchronous functions (do they heed their context?)", func() bool { return h.running == 0 })
	h.retained(kept)
	h.mu.Lock()
	clear(h.tokens)
	h.mu.Unlock()
}

// wakes delivers what Apply and Wake have brought.
func (h *Host) wakes(s *stream) {
	h.mu.Lock()
	woken, arg := s.woken, s.wakeArg
	s.woken, s.wakeArg = false, 0
	h.mu.Unlock()
	if woken {
		if v := h.deliver(s, &event{phase: bridge.PhaseWake, arg: arg}, "wake"); v != nil {
			s.judge(v, nil)
		}
	}
}

// cut ends the exchange.
func (s *stream) cut() { panic(errCut{}) }

func (s *stream) fail(text string) {
	s.ex.Failure = text
	if text == "" {
		s.ex.Failure = "no text"
	}
	if s.ex.Upstream == nil {
		s.ex.Status = 500
	} else {
		s.ex.Reset = true
	}
	s.cut()
}

// judge handles what every verdict may hold, and ends the stream where it says so.
func (s *stream) judge(v *verdict, d *direction) {
	s.always(v)
	s.unsub |= v.unsubscribe
	for i, m := range v.bodyMode {
		if m != 0 {
			s.mode[i] = m
		}
	}
	switch v.action {
	case bridge.ActError:
		s.fail(v.err)
	case bridge.ActReset:
		s.ex.Reset = true
		s.cut()
	case bridge.ActReply:
		s.reply(v.reply)
	case bridge.ActContinue, bridge.ActMore:
	default:
		s.fail(fmt.Sprintf("action %d", v.action))
	}
}

// always applies what does not depend on the action.
func (s *stream) always(v *verdict) {
	for _, o := range v.ops {
		switch o.kind {
		case bridge.OpMetadataSet:
			s.ex.Metadata[string(o.key[:o.u0])+"."+string(o.key[o.u0:])] = string(o.val)
		case bridge.OpMetric:
			if s.h.RecordMetric(o.target, int64(o.u0)) != bridge.OK {
				s.h.t.Errorf("METRIC with the id %d, which was not given out, or a counter that should shrink by %d", o.target, int64(o.u0))
			}
		case bridge.OpRoute:
			if string(o.key) == "cluster" {
				s.ex.Cluster = string(o.val)
			}
		}
	}
}

func (s *stream) reply(r *reply) {
	h := s.h
	h.checkFields("reply header", r.header, false)
	s.ex.Replied, s.ex.Details = true, r.details
	s.ex.Status, s.ex.Header, s.ex.Trailers = r.status, r.header, r.trailers
	s.ex.Body = r.body
	s.resp = append([]Field{{Name: ":status", Value: strconv.Itoa(r.status)}}, r.header...)
	for open := r.flags&bridge.ReplyOpen != 0; open; {
		h.await("the next piece of a streamed reply", func() bool { return len(s.applied) > 0 })
		h.mu.Lock()
		v := s.applied[0]
		s.applied = s.applied[1:]
		full := s.full && len(s.applied) == 0
		if full {
			s.full = false
		}
		h.mu.Unlock()
		for _, o := range v.ops {
			if o.kind == bridge.OpBodyWrite {
				s.ex.Body = append(s.ex.Body, o.val...)
				open = open && o.flags&bridge.OpFlagEnd == 0
			}
		}
		if s.step() {
			s.ex.Cancelled = true
			s.cut()
		}
		if full {
			if h.deliver(s, &event{phase: bridge.PhaseWake, flags: bridge.EvWritable}, "wake") == nil {
				s.ex.Cancelled = true
				s.cut()
			}
		}
	}
	s.end()
	s.cut()
}

// checkFields refuses what a host would refuse.
func (h *Host) checkFields(what string, f []Field, pseudo bool) {
	h.t.Helper()
	for _, f := range f {
		h.checkField(what, f.Name, f.Value, pseudo)
	}
}

func (h *Host) checkField(what, name, value string, pseudo bool) {
	h.t.Helper()
	if strings.IndexByte(name, poison) >= 0 || strings.IndexByte(value, poison) >= 0 {
		h.t.Errorf("%s %q: %q is a view that died: copy with Get instead of GetView (PXG-MEM-002). The view was of %s",
			what, name, value, h.whose(value+name))
		return
	}
	if strings.HasPrefix(name, ":") && pseudo {
		name = name[1:]
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	}) {
		h.t.Errorf("%s %q: not a lower case field name (PXG-HDR-005)", what, name)
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		h.t.Errorf("%s %q: value %q holds CR, LF or NUL (PXG-HDR-005)", what, name, value)
	}
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "content-length", "host":
		h.t.Errorf("%s %q: the field belongs to the host (PXG-HDR-008)", what, name)
	}
}

// whose names the dead view whose rubbish is in s.
func (h *Host) whose(s string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Short views hold only the beginning of a label: the longest one that fits is it.
	best, label := 0, "an event"
	for _, r := range h.dead {
		if len(r.mem) > best && strings.Contains(s, string(r.mem)) {
			best, label = len(r.mem), r.label
		}
	}
	return label
}
