package proxyfiltertest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	pf "github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

// recorder is a testing.TB that notes failures instead of failing.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// failures runs a filter as a test would and answers what that test would have said.
func failures(t *testing.T, filter string, req proxyfiltertest.Request) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		proxyfiltertest.New(r, filter, "").Do(req, nil)
	}()
	<-done
	return strings.Join(r.failures, "\n")
}

type headersFunc func(s pf.Stream, h pf.Headers) pf.Action

func (f headersFunc) OnRequestHeaders(s pf.Stream, h pf.Headers) pf.Action { return f(s, h) }

type bodyFunc func(s pf.Stream, b pf.Body) pf.Action

func (f bodyFunc) OnRequestBody(s pf.Stream, b pf.Body) pf.Action { return f(s, b) }

type asyncFunc func(ctx context.Context, a *pf.AsyncStream)

func (f asyncFunc) OnRequestHeadersAsync(ctx context.Context, a *pf.AsyncStream) { f(ctx, a) }

func register(name string, f pf.Filter, opts ...pf.Option) {
	pf.Register(name, func(*struct{}, *pf.Env) (pf.Filter, error) { return f, nil }, opts...)
}

// poisoned is closed when the views of the test's event are sure to be dead.
var poisoned chan struct{}

// keeper keeps a view in a field of its own.
type keeper struct {
	inner struct{ last string }
	all   map[string][]byte
}

func (k *keeper) OnRequestHeaders(_ pf.Stream, h pf.Headers) pf.Action {
	k.inner.last, _ = h.GetView("authorization")
	return pf.Continue
}

// asyncKeeper keeps what an AsyncStream answered, which is a copy.
type asyncKeeper struct {
	value   string
	trailer []pf.Field
	body    []byte
}

func (k *asyncKeeper) OnRequestBodyAsync(_ context.Context, a *pf.AsyncStream) {
	k.value, k.trailer, k.body = a.Get("authorization"), append(a.Headers(), a.Trailers()...), a.Body()
	_ = a.Continue()
}

type headersKeeper struct{ h pf.Headers }

func (k *headersKeeper) OnRequestHeaders(_ pf.Stream, h pf.Headers) pf.Action {
	k.h = h
	return pf.Continue
}

type chunkKeeper struct{ chunks [][]byte }

func (k *chunkKeeper) OnRequestBody(_ pf.Stream, b pf.Body) pf.Action {
	for c := range b.ChunkViews() {
		k.chunks = append(k.chunks, c)
	}
	return pf.Continue
}

// honest copies, and is not blamed.
type honest struct{ last string }

func (k *honest) OnRequestHeaders(_ pf.Stream, h pf.Headers) pf.Action {
	k.last = h.Get("authorization")
	return pf.Continue
}

func init() {
	pf.Register("keep-view", func(k *keeper, _ *pf.Env) (pf.Filter, error) { return k, nil })
	pf.Register("keep-headers", func(k *headersKeeper, _ *pf.Env) (pf.Filter, error) { return k, nil })
	pf.Register("keep-chunk", func(k *chunkKeeper, _ *pf.Env) (pf.Filter, error) { return k, nil })
	pf.Register("keep-async", func(k *asyncKeeper, _ *pf.Env) (pf.Filter, error) { return k, nil })
	pf.Register("keep-copy", func(k *honest, _ *pf.Env) (pf.Filter, error) { return k, nil })
	register("async-view", headersFunc(func(s pf.Stream, h pf.Headers) pf.Action {
		v, _ := h.GetView("authorization")
		return s.Async(func(_ context.Context, a *pf.AsyncStream) {
			<-poisoned
			a.Set("x-out", v)
			_ = a.Continue()
		})
	}), pf.MayPend(pf.PhaseRequestHeaders))
	register("write-view", bodyFunc(func(_ pf.Stream, b pf.Body) pf.Action {
		for c := range b.ChunkViews() {
			c[0] = '!'
		}
		return pf.Continue
	}))
	register("hop-by-hop", headersFunc(func(_ pf.Stream, h pf.Headers) pf.Action {
		h.Set("content-length", "0")
		return pf.Continue
	}))
	register("crlf", headersFunc(func(_ pf.Stream, h pf.Headers) pf.Action {
		h.Set("x-a", "b\r\nx-c: d")
		return pf.Continue
	}))
	register("swap", bodyFunc(func(s pf.Stream, b pf.Body) pf.Action {
		// Turns ab into AB, wherever the body was split.
		all := b.Bytes()
		for {
			i := bytes.Index(all, []byte("ab"))
			if i < 0 {
				break
			}
			b.Pass(i)
			b.Drop(2)
			b.Inject([]byte("AB"))
			all = all[i+2:]
		}
		if n := len(all); n > 0 && all[n-1] == 'a' && !b.End() {
			b.Pass(n - 1)
			return s.More(1)
		}
		return pf.Continue
	}))
	register("async-only", asyncFunc(func(_ context.Context, a *pf.AsyncStream) {
		a.Set("x-seen", a.Get("X-In"))
		_ = a.Continue()
	}))
	register("forget", asyncFunc(func(context.Context, *pf.AsyncStream) {}))
	register("wait-for-cancel", asyncFunc(func(ctx context.Context, a *pf.AsyncStream) {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Microsecond):
		}
		if err := a.Continue(); err != nil && !errors.Is(context.Cause(ctx), pf.ErrStreamGone) {
			panic("no cause: " + err.Error())
		}
	}))
	register("stream-reply", asyncFunc(func(_ context.Context, a *pf.AsyncStream) {
		w, err := a.StreamReply(pf.Reply{Status: 201, Header: []pf.Field{pf.F("x-streamed", "1")}, Body: []byte("0")})
		if err != nil {
			return
		}
		for i := 1; i < 5; i++ {
			if _, err := io.WriteString(w, fmt.Sprint(i)); err != nil {
				return
			}
		}
		_ = w.Close()
	}), func(d *pf.Declaration) { d.StreamedReplies = true })
	register("whole", whole{})
}

type whole struct{}

func (whole) ProxyGolangRequest(h pf.HeaderMap, body []byte, trailers pf.HeaderMap) pf.Message {
	if h.Get("x-deny") != "" {
		return pf.Message{Flags: pf.LocalReply, Headers: pf.HeaderMap{":status": {"403"}, "x-why": {"denied"}}, Body: []byte("no")}
	}
	h.Set("x-len", fmt.Sprint(len(body)))
	h.Del("x-gone")
	h.Add("x-two", "2")
	trailers.Set("x-end", "yes")
	return pf.Message{Flags: pf.SetHeaders | pf.SetBody | pf.SetTrailers, Headers: h, Body: bytes.ToUpper(body), Trailers: trailers}
}

func TestRetainedViewsAreCaught(t *testing.T) {
	req := proxyfiltertest.Request{Header: []pf.Field{pf.F("authorization", "Bearer secret")}, Body: []byte("hello")}
	for filter, want := range map[string]string{
		"keep-view":    `test.keeper.inner.last keeps a view of request header "authorization"`,
		"keep-headers": `headersKeeper.h keeps a proxyfilter.Headers`,
		"keep-chunk":   `chunkKeeper.chunks[0] keeps a view of request body`,
		"write-view":   `request body was written to`,
		"hop-by-hop":   `"content-length": the field belongs to the host`,
		"crlf":         `holds CR, LF or NUL`,
	} {
		if got := failures(t, filter, req); !strings.Contains(got, want) {
			t.Errorf("%s: the test says %q, want %q", filter, got, want)
		}
	}
	if got := failures(t, "keep-copy", req); got != "" {
		t.Errorf("a filter that copies is blamed: %s", got)
	}
}

func TestAsyncStreamAnswersCopies(t *testing.T) {
	req := proxyfiltertest.Request{Header: []pf.Field{pf.F("authorization", "Bearer secret")}, Body: []byte("hello"), Trailers: []pf.Field{pf.F("x-t", "t")}}
	proxyfiltertest.Sweep(t, "keep-async", "", func(t *testing.T, h *proxyfiltertest.Host) {
		if ex := h.Do(req, nil); ex.Failure != "" || string(ex.Body) != "hello" {
			t.Errorf("%+v", ex)
		}
	})
}

// A goroutine that captured a view hands out what is there by then.
func TestStaleViewInGoroutineIsCaught(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector catches it first")
	}
	poisoned = make(chan struct{})
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h := proxyfiltertest.New(r, "async-view", "")
		time.AfterFunc(20*time.Millisecond, func() { close(poisoned) })
		h.Do(proxyfiltertest.Request{Header: []pf.Field{pf.F("authorization", "Bearer secret")}}, nil)
	}()
	<-done
	if got := strings.Join(r.failures, "\n"); !strings.Contains(got, `is a view that died`) || !strings.Contains(got, `request header "authorization"`) {
		t.Errorf("the test says %q", got)
	}
}

func TestBodyIsSplit(t *testing.T) {
	body := strings.Repeat("xabyaabba", 200)
	proxyfiltertest.Sweep(t, "swap", "", func(t *testing.T, h *proxyfiltertest.Host) {
		ex := h.Do(proxyfiltertest.Request{Body: []byte(body)}, nil)
		if want := strings.ReplaceAll(body, "ab", "AB"); string(ex.Body) != want {
			t.Errorf("failure %q, body %q", ex.Failure, ex.Body)
		}
	})
}

func TestAsyncOnly(t *testing.T) {
	proxyfiltertest.Sweep(t, "async-only", "", func(t *testing.T, h *proxyfiltertest.Host) {
		ex := h.Do(proxyfiltertest.Request{Header: []pf.Field{pf.F("X-In", "in")}}, nil)
		if ex.Upstream == nil || ex.Upstream.Get("x-seen") != "in" {
			t.Errorf("failure %q, upstream %+v", ex.Failure, ex.Upstream)
		}
	})
}

func TestForgottenDecisionFailsClosed(t *testing.T) {
	proxyfiltertest.Sweep(t, "forget", "", func(t *testing.T, h *proxyfiltertest.Host) {
		ex := h.Do(proxyfiltertest.Request{}, nil)
		if ex.Status != 500 || ex.Upstream != nil || !strings.Contains(ex.Failure, "without a decision") {
			t.Errorf("status %d, failure %q", ex.Status, ex.Failure)
		}
	})
}

func TestSurvive(t *testing.T) {
	proxyfiltertest.Survive(t, "wait-for-cancel", "", proxyfiltertest.Request{}, nil)
	proxyfiltertest.Survive(t, "stream-reply", "", proxyfiltertest.Request{}, nil)
	proxyfiltertest.Survive(t, "swap", "", proxyfiltertest.Request{Body: []byte("aaaaabbbb")}, nil)
}

func TestStreamReply(t *testing.T) {
	proxyfiltertest.Sweep(t, "stream-reply", "", func(t *testing.T, h *proxyfiltertest.Host) {
		ex := h.Do(proxyfiltertest.Request{}, nil)
		if ex.Status != 201 || string(ex.Body) != "01234" || ex.Get("x-streamed") != "1" || ex.Upstream != nil {
			t.Errorf("%+v", ex)
		}
	})
}

func TestWhole(t *testing.T) {
	proxyfiltertest.Sweep(t, "whole", "", func(t *testing.T, h *proxyfiltertest.Host) {
		ex := h.Do(proxyfiltertest.Request{Body: []byte("body"), Header: []pf.Field{pf.F("x-gone", "1"), pf.F("x-two", "1"), pf.F("x-keep", "k")}}, nil)
		up := ex.Upstream
		if up == nil || up.Get("x-len") != "4" || up.Get("x-gone") != "" || up.Get("x-keep") != "k" || string(up.Body) != "BODY" {
			t.Fatalf("failure %q, upstream %+v", ex.Failure, up)
		}
		var two []string
		for _, f := range up.Header {
			if f.Name == "x-two" {
				two = append(two, f.Value)
			}
		}
		if fmt.Sprint(two) != "[1 2]" || len(up.Trailers) != 1 || up.Trailers[0] != pf.F("x-end", "yes") {
			t.Errorf("x-two %v, trailers %v", two, up.Trailers)
		}
		if len(ex.Events) != 1 {
			t.Errorf("%d crossings: %v", len(ex.Events), ex.Events)
		}
		ex = h.Do(proxyfiltertest.Request{Header: []pf.Field{pf.F("x-deny", "1")}}, nil)
		if ex.Status != 403 || ex.Get("x-why") != "denied" || string(ex.Body) != "no" || ex.Upstream != nil {
			t.Errorf("%+v", ex)
		}
	})
}

func TestRefused(t *testing.T) {
	if got := proxyfiltertest.Refused(t, "async-only", "", proxyfiltertest.WithoutAsync()); !strings.Contains(got, "PEND_REQUEST_HEADERS") {
		t.Errorf("refused with %q", got)
	}
	if got := proxyfiltertest.Refused(t, "swap", `{"x": 1}`); !strings.Contains(got, `"x"`) {
		t.Errorf("refused with %q", got)
	}
	if got := proxyfiltertest.Refused(t, "nobody", ""); !strings.Contains(got, "keep-view") {
		t.Errorf("refused with %q", got)
	}
}
