// Guests is the library of the benchmarks: three filters that do the same, each
// in another way, so that the way is what is measured, and one for whole bodies.
package main

import (
	"context"
	"strconv"
	"time"

	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// What each of them sets in the request.
const field, value = "x-bench", "0123456789abcdef"

type direct struct{}

func (direct) OnRequestHeaders(_ proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	h.Set(field, value)
	return proxyfilter.Continue
}

type later struct{}

func (later) OnRequestHeadersAsync(_ context.Context, a *proxyfilter.AsyncStream) {
	a.Set(field, value)
	_ = a.Continue()
}

type slow struct{}

func (slow) OnRequestHeadersAsync(_ context.Context, a *proxyfilter.AsyncStream) {
	time.Sleep(20 * time.Millisecond)
	a.Set(field, value)
	_ = a.Continue()
}

type whole struct{}

func (whole) OnRequestBody(s proxyfilter.Stream, b proxyfilter.Body) proxyfilter.Action {
	s.Headers().Set(field, strconv.Itoa(b.Len()))
	return proxyfilter.Continue
}

func register(name string, f proxyfilter.Filter, opts ...proxyfilter.Option) {
	proxyfilter.Register(name, func(*struct{}, *proxyfilter.Env) (proxyfilter.Filter, error) { return f, nil }, opts...)
}

func init() {
	// In the event, on the proxy's loop.
	register("bench-sync", direct{})
	// On the one goroutine of the loop's ring.
	register("bench-ring", later{}, proxyfilter.Nonblocking())
	// On a goroutine of its own.
	register("bench-goroutine", later{})
	// The same after 20 ms: requests are pending all the time.
	register("bench-slow", slow{})
	// The whole body in one event, which sets the field to its length.
	register("bench-whole", whole{}, proxyfilter.RequestBody(proxyfilter.BodyWhole, 1<<20))
}

func main() {}
