// Suspend is the library of nginx's do-no-harm run and of its faults: filters that
// stop each message at its headers and at each piece of its body, change nothing
// and let it go on, the example that misbehaves on demand, and one that panics.
package main

import (
	"context"
	"sync"
	"time"

	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/faulty"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// suspend waits in all four phases. The event loop goes round meanwhile, so what
// resumes a message is never the call that stopped it.
type suspend struct {
	// Micros is how long headers wait; pieces of bodies wait a tenth of it.
	Micros int `json:"micros"`
}

func (f *suspend) wait(a *proxyfilter.AsyncStream, part time.Duration) {
	if f.Micros > 0 {
		time.Sleep(time.Duration(f.Micros) * time.Microsecond / part)
	}
	_ = a.Continue()
}

func (f *suspend) OnRequestHeadersAsync(_ context.Context, a *proxyfilter.AsyncStream)  { f.wait(a, 1) }
func (f *suspend) OnRequestBodyAsync(_ context.Context, a *proxyfilter.AsyncStream)     { f.wait(a, 10) }
func (f *suspend) OnResponseHeadersAsync(_ context.Context, a *proxyfilter.AsyncStream) { f.wait(a, 1) }
func (f *suspend) OnResponseBodyAsync(_ context.Context, a *proxyfilter.AsyncStream)    { f.wait(a, 10) }

// wait stops requests at their headers alone.
type wait struct{ suspend suspend }

func (f *wait) OnRequestHeadersAsync(c context.Context, a *proxyfilter.AsyncStream) {
	f.suspend.OnRequestHeadersAsync(c, a)
}

// pend answers a request when its field x-pend says so: "never" waits for the
// stream's death, "gate" for a request to /open, anything else is a duration.
type pend struct {
	mu   sync.Mutex
	gate chan struct{}
}

func (f *pend) OnRequestHeadersAsync(ctx context.Context, a *proxyfilter.AsyncStream) {
	if a.Get(":path") == "/open" {
		f.mu.Lock()
		close(f.gate)
		f.gate = make(chan struct{})
		f.mu.Unlock()
	}
	switch how := a.Get("x-pend"); how {
	case "":
	case "never":
		<-ctx.Done()
		return
	case "gate":
		f.mu.Lock()
		gate := f.gate
		f.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return
		}
	default:
		d, err := time.ParseDuration(how)
		if err != nil {
			_ = a.Fail(err)
			return
		}
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return
		}
	}
	_ = a.Continue()
}

func register(name string, opts ...proxyfilter.Option) {
	opts = append(opts, proxyfilter.RequestBody(proxyfilter.BodyStream, 0), proxyfilter.ResponseBody(proxyfilter.BodyStream, 0))
	proxyfilter.Register(name, func(f *suspend, _ *proxyfilter.Env) (proxyfilter.Filter, error) { return f, nil }, opts...)
}

func init() {
	register("suspend")
	register("ring", proxyfilter.Nonblocking())
	proxyfilter.Register("wait", func(f *suspend, _ *proxyfilter.Env) (proxyfilter.Filter, error) {
		return &wait{*f}, nil
	})
	proxyfilter.Register("pend", func(*struct{}, *proxyfilter.Env) (proxyfilter.Filter, error) {
		return &pend{gate: make(chan struct{})}, nil
	})
	proxyfilter.Register("label", func(f *label, _ *proxyfilter.Env) (proxyfilter.Filter, error) { return f, nil })
}

// version is set by the linker, so that two builds can be told apart.
var version = "1"

// label tells the client which build it met.
type label struct{}

func (*label) OnResponseHeaders(_ proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	h.Set("x-version", version)
	return proxyfilter.Continue
}

func main() {}
