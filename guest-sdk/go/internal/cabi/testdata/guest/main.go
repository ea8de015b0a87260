// Guest is the library of the boundary tests: the examples and filters that
// measure or exercise one thing each.
package main

import (
	"bytes"
	"context"
	"os"
	"runtime"

	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/faulty"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/tokencheck"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/traceid"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
	pf "github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

type onHeaders func(s pf.Stream, h pf.Headers) pf.Action

func (f onHeaders) OnRequestHeaders(s pf.Stream, h pf.Headers) pf.Action { return f(s, h) }

func register(name string, f onHeaders) {
	pf.Register(name, func(*struct{}, *pf.Env) (pf.Filter, error) { return f, nil })
}

var sum int

type asyncOnly struct{}

func (asyncOnly) OnRequestHeadersAsync(_ context.Context, a *pf.AsyncStream) {
	a.Set("x-seen", a.Get("x-fault"))
	_ = a.Continue()
}

type asyncNever struct{}

func (asyncNever) OnRequestHeadersAsync(ctx context.Context, _ *pf.AsyncStream) { <-ctx.Done() }

type streamReply struct{}

func (streamReply) Declare(d *pf.Declaration) { d.StreamedReplies = true }

func (streamReply) OnRequestHeadersAsync(_ context.Context, a *pf.AsyncStream) {
	w, err := a.StreamReply(pf.Reply{Status: 200})
	if err != nil {
		return
	}
	_, _ = w.Write([]byte("one"))
	_, _ = w.Write([]byte("two"))
	_ = w.Close()
}

func init() {
	if step := os.Getenv("TEST_DISABLE_RECIPE"); step != "" {
		pf.DisableRecipe(step)
	}
	register("test-nothing", func(pf.Stream, pf.Headers) pf.Action { return pf.Continue })
	register("test-read20", func(_ pf.Stream, h pf.Headers) pf.Action {
		n := 0
		for name, value := range h.AllViews() {
			n += len(name) + len(value)
		}
		sum = n
		return pf.Continue
	})
	register("test-set3", func(_ pf.Stream, h pf.Headers) pf.Action {
		h.Set("x-trace-id", "0123456789abcdef")
		h.Add("x-filter", "go")
		h.Del("x-internal")
		return pf.Continue
	})
	register("test-read20-set3", func(_ pf.Stream, h pf.Headers) pf.Action {
		n := 0
		for name, value := range h.AllViews() {
			n += len(name) + len(value)
		}
		sum = n
		h.Set("x-trace-id", "0123456789abcdef")
		h.Add("x-filter", "go")
		h.Del("x-internal")
		return pf.Continue
	})
	pf.Register("test-mallocs", func(_ *struct{}, env *pf.Env) (pf.Filter, error) {
		mallocs, err := env.Gauge("mallocs", pf.F("of", "go"))
		if err != nil {
			return nil, err
		}
		mallocs.Record(-1)
		return onHeaders(func(s pf.Stream, _ pf.Headers) pf.Action {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			s.Record(mallocs, int64(m.Mallocs))
			return pf.Continue
		}), nil
	})
	register("test-big", func(s pf.Stream, _ pf.Headers) pf.Action {
		return s.Reply(pf.Reply{Status: 200, Body: bytes.Repeat([]byte("b"), 1<<20)})
	})
	pf.Register("test-async-only", func(*struct{}, *pf.Env) (pf.Filter, error) { return asyncOnly{}, nil })
	pf.Register("test-async-nonblocking", func(*struct{}, *pf.Env) (pf.Filter, error) { return asyncOnly{}, nil }, pf.Nonblocking())
	pf.Register("test-async-never", func(*struct{}, *pf.Env) (pf.Filter, error) { return asyncNever{}, nil })
	pf.Register("test-stream-reply", func(*struct{}, *pf.Env) (pf.Filter, error) { return streamReply{}, nil })
}

func main() {}
