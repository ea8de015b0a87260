package proxyfilter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pf "github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

type onRequest func(s pf.Stream, h pf.Headers) pf.Action

func (f onRequest) OnRequestHeaders(s pf.Stream, h pf.Headers) pf.Action { return f(s, h) }

type onResponse func(s pf.Stream, h pf.Headers) pf.Action

func (f onResponse) OnResponseHeaders(s pf.Stream, h pf.Headers) pf.Action { return f(s, h) }

var names atomic.Int64

// use registers a filter under a name of its own.
func use(f pf.Filter, opts ...pf.Option) string {
	name := fmt.Sprintf("test-%d", names.Add(1))
	pf.Register(name, func(*struct{}, *pf.Env) (pf.Filter, error) { return f, nil }, opts...)
	return name
}

func do(t *testing.T, f pf.Filter, req proxyfiltertest.Request, opts ...pf.Option) *proxyfiltertest.Exchange {
	t.Helper()
	return proxyfiltertest.New(t, use(f, opts...), "").Do(req, nil)
}

func TestHeaders(t *testing.T) {
	req := proxyfiltertest.Request{Path: "/p?q", Header: []pf.Field{pf.F("a", "1"), pf.F("b", "x"), pf.F("a", "2"), pf.F("empty", "")}}
	ex := do(t, onRequest(func(s pf.Stream, h pf.Headers) pf.Action {
		if h.Method() != "GET" || h.Path() != "/p?q" || h.Authority() != "example.com" || h.Scheme() != "http" {
			t.Errorf("%q", h.Clone())
		}
		if v, ok := h.GetView("empty"); !ok || v != "" {
			t.Error("an empty field is absent")
		}
		if _, ok := h.GetView("absent"); ok || h.Has("absent") || !h.Has("EMPTY") {
			t.Error("an absent field is there")
		}
		if got := h.Values("A"); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("values %q", got)
		}
		if h.Get("B") != "x" || h.Index("b") != 5 || h.Len() != 8 {
			t.Errorf("Get %q, Index %d, Len %d", h.Get("B"), h.Index("b"), h.Len())
		}
		for n, v := range h.AllViews() {
			if n == "b" && v != "x" {
				t.Errorf("b: %q", v)
			}
		}
		if n, v := h.AtView(4); n != "a" || v != "1" {
			t.Errorf("at 4: %s: %s", n, v)
		}
		h.Set("X-Set", "s")
		h.Add("a", "3")
		h.Del("B")
		h.SetAt(4, "one")
		h.DelAt(6)
		h.Set(":path", "/new")
		return pf.Continue
	}), req)
	if ex.Failure != "" || ex.Upstream == nil {
		t.Fatal(ex.Failure)
	}
	want := []pf.Field{pf.F("a", "one"), pf.F("empty", ""), pf.F("x-set", "s"), pf.F("a", "3")}
	if !slices.Equal(ex.Upstream.Header, want) || ex.Upstream.Path != "/new" {
		t.Errorf("path %s, fields %q", ex.Upstream.Path, ex.Upstream.Header)
	}
}

func TestFaultsNameTheirReason(t *testing.T) {
	async := func(context.Context, *pf.AsyncStream) {}
	for want, f := range map[string]onRequest{
		"zero Action":     func(pf.Stream, pf.Headers) pf.Action { return 0 },
		"the action 99":   func(pf.Stream, pf.Headers) pf.Action { return 99 },
		"PENDING without": func(pf.Stream, pf.Headers) pf.Action { return 2 },
		"REPLY without":   func(pf.Stream, pf.Headers) pf.Action { return 4 },
		"from 200 to 599": func(s pf.Stream, _ pf.Headers) pf.Action { return s.Reply(pf.Reply{Status: 99}) },
		"gRPC status 17": func(s pf.Stream, _ pf.Headers) pf.Action {
			return s.Reply(pf.Reply{Status: 200, GRPC: true, GRPCStatus: 17})
		},
		"register it with MayPend":           func(s pf.Stream, _ pf.Headers) pf.Action { return s.Async(async) },
		"field index 99 of 4":                func(_ pf.Stream, h pf.Headers) pf.Action { h.DelAt(99); return pf.Continue },
		"needs a method for":                 func(s pf.Stream, _ pf.Headers) pf.Action { return s.More(1) },
		"of the other direction":             func(s pf.Stream, _ pf.Headers) pf.Action { s.PeerHeaders().Set("a", "b"); return pf.Continue },
		"can't be passed or dropped at 0 of": func(s pf.Stream, _ pf.Headers) pf.Action { s.Body().Drop(1); return pf.Continue },
		"why not":                            func(s pf.Stream, _ pf.Headers) pf.Action { return s.Fail(errors.New("why not")) },
	} {
		ex := do(t, f, proxyfiltertest.Request{})
		if !strings.Contains(ex.Failure, want) || ex.Status != 500 {
			t.Errorf("status %d, failure %q, want %q", ex.Status, ex.Failure, want)
		}
	}
	for want, f := range map[string]onRequest{
		"Async was called twice":  func(s pf.Stream, _ pf.Headers) pf.Action { s.Async(async); return s.Async(async) },
		"after the event was":     func(s pf.Stream, h pf.Headers) pf.Action { h.Set("a", "b"); return s.Async(async) },
		"can't change subscript":  func(s pf.Stream, _ pf.Headers) pf.Action { s.Unsubscribe(pf.PhaseLog); return s.Async(async) },
		"did not return its":      func(s pf.Stream, _ pf.Headers) pf.Action { s.Async(async); return pf.Continue },
		"returned without a deci": func(s pf.Stream, _ pf.Headers) pf.Action { return s.Async(async) },
	} {
		ex := do(t, f, proxyfiltertest.Request{}, pf.MayPend(pf.PhaseRequestHeaders))
		if !strings.Contains(ex.Failure, want) || ex.Status != 500 {
			t.Errorf("status %d, failure %q, want %q", ex.Status, ex.Failure, want)
		}
	}
}

func TestUnusedReplyIsForgotten(t *testing.T) {
	ex := do(t, onRequest(func(s pf.Stream, _ pf.Headers) pf.Action {
		s.Reply(pf.Reply{Status: 403})
		return pf.Continue
	}), proxyfiltertest.Request{})
	if ex.Status != 200 || ex.Replied {
		t.Errorf("%+v", ex)
	}
}

func TestEffectsBesideHeaders(t *testing.T) {
	ex := do(t, onRequest(func(s pf.Stream, _ pf.Headers) pf.Action {
		s.SetMetadata("", "own", "1")
		s.SetMetadata("other.ns", "key", "2")
		s.RouteToCluster("blue")
		return pf.Continue
	}), proxyfiltertest.Request{})
	if ex.Metadata[".own"] != "1" || ex.Metadata["other.ns.key"] != "2" || ex.Cluster != "blue" {
		t.Errorf("%+v", ex)
	}
}

// perStream counts what happens to one stream.
type perStream struct {
	pool  *streamPool
	saw   []pf.Phase
	ended bool
}

type streamPool struct{ made, ended, reset atomic.Int64 }

func (p *streamPool) NewStream() any {
	p.made.Add(1)
	return &perStream{pool: p}
}

func (s *perStream) OnRequestHeaders(pf.Stream, pf.Headers) pf.Action {
	s.saw = append(s.saw, pf.PhaseRequestHeaders)
	return pf.Continue
}

func (s *perStream) OnResponseHeaders(_ pf.Stream, h pf.Headers) pf.Action {
	h.Set("x-saw", fmt.Sprint(len(s.saw)))
	return pf.Continue
}

func (s *perStream) OnStreamEnd() { s.pool.ended.Add(1) }

func (s *perStream) Reset() { s.saw = s.saw[:0]; s.pool.reset.Add(1) }

func TestPerStreamObjects(t *testing.T) {
	pool := &streamPool{}
	h := proxyfiltertest.New(t, use(pool), "")
	for range 10 {
		if ex := h.Do(proxyfiltertest.Request{}, nil); ex.Get("x-saw") != "1" {
			t.Errorf("saw %q phases, failure %q", ex.Get("x-saw"), ex.Failure)
		}
	}
	if pool.ended.Load() != 10 || pool.reset.Load() != 10 {
		t.Errorf("ended %d, reset %d", pool.ended.Load(), pool.reset.Load())
	}
}

type logger struct {
	end    pf.End
	status int
	peer   string
}

func (l *logger) OnLog(s pf.Stream, e pf.End) {
	l.end = e
	l.status, l.peer = s.Headers().Status(), s.PeerHeaders().Get("x-a")
}

func TestLog(t *testing.T) {
	l := &logger{}
	do(t, l, proxyfiltertest.Request{Header: []pf.Field{pf.F("x-a", "abc")}})
	if l.end.Reason() != pf.EndComplete || l.end.Request() != pf.Completed || l.end.Response() != pf.Completed {
		t.Errorf("end %s, %s, %s", l.end.Reason(), l.end.Request(), l.end.Response())
	}
	if l.status != 200 || l.peer != "abc" {
		t.Errorf("status %d, the request's field %q", l.status, l.peer)
	}
}

type waker struct {
	refs chan pf.Ref
	args atomic.Uint64
}

func (w *waker) Declare(d *pf.Declaration) { d.Pends = []pf.Phase{pf.PhaseRequestHeaders} }

func (w *waker) OnRequestHeaders(s pf.Stream, _ pf.Headers) pf.Action {
	return s.Async(func(ctx context.Context, a *pf.AsyncStream) {
		_ = a.Ref().Wake(1)
		_ = a.Ref().Wake(4)
		for w.args.Load() != 5 && ctx.Err() == nil {
			time.Sleep(50 * time.Microsecond)
		}
		w.refs <- a.Ref()
		_ = a.Continue()
	})
}

func (w *waker) OnWake(_ pf.Stream, arg uint64) pf.Action {
	w.args.Or(arg)
	return pf.Continue
}

func TestWakeAndStaleRef(t *testing.T) {
	w := &waker{refs: make(chan pf.Ref, 1)}
	if ex := do(t, w, proxyfiltertest.Request{}); ex.Status != 200 {
		t.Fatalf("%+v", ex)
	}
	r := <-w.refs
	if err := r.Wake(1); !errors.Is(err, pf.ErrStreamGone) {
		t.Errorf("Wake of a dead stream: %v", err)
	}
	if err := r.Apply(func(c pf.Changes) { c.Reset() }); !errors.Is(err, pf.ErrStreamGone) {
		t.Errorf("Apply to a dead stream: %v", err)
	}
}

func TestDecidesOnce(t *testing.T) {
	errs := make(chan error, 3)
	ex := do(t, onRequest(func(s pf.Stream, _ pf.Headers) pf.Action {
		return s.Async(func(ctx context.Context, a *pf.AsyncStream) {
			a.Set("x-a", "1")
			errs <- a.Reply(pf.Reply{Status: 403, Body: []byte("no")})
			errs <- a.Continue()
			errs <- ctx.Err()
		})
	}), proxyfiltertest.Request{}, pf.MayPend(pf.PhaseRequestHeaders))
	if ex.Status != 403 || string(ex.Body) != "no" || ex.Upstream != nil {
		t.Errorf("%+v", ex)
	}
	if err := <-errs; err != nil {
		t.Errorf("the first decision: %v", err)
	}
	if err := <-errs; !errors.Is(err, pf.ErrDecided) {
		t.Errorf("the second decision: %v", err)
	}
	if err := <-errs; err != nil {
		t.Errorf("the context of a running function: %v", err)
	}
}

func TestCancelHasItsCause(t *testing.T) {
	cause := make(chan error, 1)
	h := proxyfiltertest.New(t, use(onRequest(func(s pf.Stream, _ pf.Headers) pf.Action {
		return s.Async(func(ctx context.Context, a *pf.AsyncStream) {
			<-ctx.Done()
			cause <- context.Cause(ctx)
			cause <- a.Continue()
		})
	}), pf.MayPend(pf.PhaseRequestHeaders)), "")
	cause = make(chan error, 2)
	if ex := h.DoAndCancel(proxyfiltertest.Request{}, nil, 2); !ex.Cancelled {
		t.Fatalf("%+v", ex)
	}
	if err := <-cause; !errors.Is(err, pf.ErrStreamGone) {
		t.Errorf("cause %v", err)
	}
	if err := <-cause; !errors.Is(err, pf.ErrStreamGone) {
		t.Errorf("a decision on a dead stream: %v", err)
	}
}

func TestAttributes(t *testing.T) {
	f := attrs{}
	h := proxyfiltertest.New(t, use(f), "", proxyfiltertest.Attributes(map[string]string{"source.address": "10.0.0.1:5", "route.name": ""}))
	ex := h.Do(proxyfiltertest.Request{}, nil)
	if ex.Upstream.Get("x-source") != "10.0.0.1:5" || ex.Upstream.Get("x-absent") != "absent" || ex.Upstream.Get("x-empty") != "there" {
		t.Errorf("%+v", ex.Upstream.Header)
	}
}

type attrs struct{}

func (attrs) Declare(d *pf.Declaration) {
	d.Attributes = []pf.Attribute{{Name: "route.name"}, {Name: "source.address"}, {Name: "tls.version"}}
}

func (attrs) OnRequestHeaders(s pf.Stream, h pf.Headers) pf.Action {
	h.Set("x-source", s.Attr("source.address"))
	if _, ok := s.AttrView("tls.version"); !ok {
		h.Set("x-absent", "absent")
	}
	if v, ok := s.AttrView("route.name"); ok && v == "" {
		h.Set("x-empty", "there")
	}
	return pf.Continue
}

// closer counts what its configuration goes through.
type closer struct {
	onRequest
	closed *atomic.Int64
}

func (c closer) Close() error { c.closed.Add(1); return nil }

type closerConfig struct {
	Steps string `json:"steps"`
	Bad   string `json:"bad"`
}

func (c *closerConfig) Provision(env *pf.Env) error {
	c.Steps += "P" + env.Name
	return nil
}

func (c *closerConfig) Validate() error {
	c.Steps += "V"
	if c.Bad != "" {
		return errors.New(c.Bad)
	}
	return nil
}

var _ io.Closer = closer{}

func TestConfigurationLifecycle(t *testing.T) {
	var closed atomic.Int64
	name := fmt.Sprintf("test-%d", names.Add(1))
	pf.Register(name, func(c *closerConfig, env *pf.Env) (pf.Filter, error) {
		if c.Bad == "panic" {
			panic("in the factory")
		}
		return closer{onRequest(func(_ pf.Stream, h pf.Headers) pf.Action {
			h.Set("x-steps", c.Steps)
			return pf.Continue
		}), &closed}, nil
	})
	t.Run("in force", func(t *testing.T) {
		ex := proxyfiltertest.New(t, name, `{"steps": "J"}`).Do(proxyfiltertest.Request{}, nil)
		if got := ex.Upstream.Get("x-steps"); got != "JPtestV" {
			t.Errorf("steps %q", got)
		}
		if closed.Load() != 0 {
			t.Error("closed while in force")
		}
	})
	if closed.Load() != 1 {
		t.Errorf("closed %d times", closed.Load())
	}
	for config, want := range map[string]string{
		`{"bad": "because"}`: "because", `{"steps": 1}`: "closerConfig.steps", `{"Steps":"","x":1}`: `"x"`, `{} {}`: "goes on", `{`: "not JSON",
	} {
		if got := proxyfiltertest.Refused(t, name, config); !strings.Contains(got, want) {
			t.Errorf("%s is refused with %q, want %q", config, got, want)
		}
	}
	if closed.Load() != 1 {
		t.Errorf("closed %d times", closed.Load())
	}
}

type twice struct{ onRequest }

func (twice) OnRequestHeadersAsync(context.Context, *pf.AsyncStream) {}

func TestRefusedDeclarations(t *testing.T) {
	cont := onRequest(func(pf.Stream, pf.Headers) pf.Action { return pf.Continue })
	for want, name := range map[string]string{
		"more than one method":  use(twice{cont}),
		"none of the phase":     use(struct{}{}),
		"no method for it":      use(cont, pf.MayPend(pf.PhaseResponseHeaders)),
		"no method for that":    use(cont, pf.RequestBody(pf.BodyWhole, 0)),
		"no phase that may":     use(cont, func(d *pf.Declaration) { d.StreamedReplies = true }),
		"neither a filter":      use(nil),
		"FLUSH (for Declaratio": use(cont, func(d *pf.Declaration) { d.Require = []pf.Feature{pf.FeatureFlush} }),
	} {
		if got := proxyfiltertest.Refused(t, name, "", proxyfiltertest.Without(pf.FeatureFlush)); !strings.Contains(got, want) {
			t.Errorf("refused with %q, want %q", got, want)
		}
	}
}

func TestParent(t *testing.T) {
	name := fmt.Sprintf("test-%d", names.Add(1))
	type cfg struct {
		Name string `json:"name"`
	}
	type named struct {
		onRequest
		name string
	}
	pf.Register(name, func(c *cfg, env *pf.Env) (pf.Filter, error) {
		n := c.Name
		if p, ok := env.Parent.(named); ok {
			n = p.name + "/" + n
		}
		return named{onRequest(func(_ pf.Stream, h pf.Headers) pf.Action { h.Set("x-name", n); return pf.Continue }), n}, nil
	})
	parent := proxyfiltertest.New(t, name, `{"name": "a"}`)
	child := proxyfiltertest.New(t, name, `{"name": "b"}`, proxyfiltertest.Parent(parent))
	if got := child.Do(proxyfiltertest.Request{}, nil).Upstream.Get("x-name"); got != "a/b" {
		t.Errorf("name %q", got)
	}
}

func TestResponse(t *testing.T) {
	ex := do(t, onResponse(func(s pf.Stream, h pf.Headers) pf.Action {
		if h.Status() != 200 {
			t.Errorf("status %d", h.Status())
		}
		h.Set(":status", "201")
		h.Set("x-resp", "1")
		return pf.Continue
	}), proxyfiltertest.Request{Body: []byte("b")})
	if ex.Status != 201 || ex.Get("x-resp") != "1" || string(ex.Body) != "b" {
		t.Errorf("%+v", ex)
	}
}

func TestLargeBatch(t *testing.T) {
	value := strings.Repeat("v", 300)
	big := strings.Repeat("B", 100<<10)
	ex := do(t, onRequest(func(s pf.Stream, h pf.Headers) pf.Action {
		for i := range 100 {
			h.Set(fmt.Sprintf("x-%d", i), value)
		}
		return pf.Continue
	}), proxyfiltertest.Request{})
	for i := range 100 {
		if ex.Upstream.Get(fmt.Sprintf("x-%d", i)) != value {
			t.Fatalf("x-%d: %q", i, ex.Upstream.Get(fmt.Sprintf("x-%d", i)))
		}
	}
	ex = do(t, onRequest(func(s pf.Stream, h pf.Headers) pf.Action {
		return s.Reply(pf.Reply{Status: 200, Body: []byte(big), Header: []pf.Field{pf.F("x-a", "b")}, Trailers: []pf.Field{pf.F("x-t", "u")}, Details: "d"})
	}), proxyfiltertest.Request{})
	if string(ex.Body) != big || ex.Get("x-a") != "b" || ex.Details != "d" || len(ex.Trailers) != 1 {
		t.Error("a large reply is damaged")
	}
}

type measured struct{ count, gauge, hist pf.Metric }

func (m *measured) OnRequestHeaders(s pf.Stream, _ pf.Headers) pf.Action {
	return s.Async(func(_ context.Context, a *pf.AsyncStream) {
		a.Record(m.hist, 100)
		a.Record(pf.Metric{}, 1)
		m.count.Record(3)
		_ = a.Continue()
	})
}

func (m *measured) OnResponseHeaders(s pf.Stream, _ pf.Headers) pf.Action {
	s.Record(m.count, 2)
	s.Record(m.gauge, 7)
	s.Record(pf.Metric{}, 1)
	return pf.Continue
}

func TestMetrics(t *testing.T) {
	name := fmt.Sprintf("test-%d", names.Add(1))
	pf.Register(name, func(_ *struct{}, env *pf.Env) (pf.Filter, error) {
		m := &measured{}
		var errs [3]error
		m.count, errs[0] = env.Counter("things_total", pf.F("kind", "a"), pf.F("place", "b"))
		m.gauge, errs[1] = env.Gauge("size")
		m.hist, errs[2] = env.Histogram("took_ns")
		again, err := env.Counter("things_total", pf.F("kind", "a"), pf.F("place", "b"))
		if again != m.count || err != nil {
			t.Errorf("the same series is %v and %v, %v", m.count, again, err)
		}
		if _, err := env.Gauge("no name"); err == nil {
			t.Error("a name with a blank is taken")
		}
		if _, err := env.Histogram("size"); err == nil {
			t.Error("another kind is taken")
		}
		return m, errors.Join(errs[:]...)
	}, pf.MayPend(pf.PhaseRequestHeaders))
	h := proxyfiltertest.New(t, name, "")
	for range 2 {
		if ex := h.Do(proxyfiltertest.Request{}, nil); ex.Failure != "" {
			t.Fatal(ex.Failure)
		}
	}
	for series, want := range map[string]int64{`things_total{kind="a",place="b"}`: 10, "size": 7, "took_ns": 2} {
		if got := h.Metric(series); got != want {
			t.Errorf("%s: %d, want %d", series, got, want)
		}
	}
}
