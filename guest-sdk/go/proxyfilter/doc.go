// Package proxyfilter is the API for filters in Go that run inside a proxy.
//
// A filter is a value with phase methods such as OnRequestHeaders; the SDK asks
// the proxy for exactly the phases that it finds. [Register] adds it to the
// library under a name, together with the type of its configuration:
//
//	type hello struct {
//		Name string `json:"name"`
//	}
//
//	func (f *hello) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
//		h.Set("x-hello", f.Name)
//		return proxyfilter.Continue
//	}
//
//	func init() {
//		proxyfilter.Register("hello", func(f *hello, _ *proxyfilter.Env) (proxyfilter.Filter, error) { return f, nil })
//	}
//
// The package is plain Go and knows no proxy. A main package that imports package
// guest beside it becomes a library for one, and package proxyfiltertest runs a
// filter in go test.
//
// # Threads
//
// Phase methods run on the proxy's event loops: they must not block, and methods of
// one filter run at once for different streams, never for one and the same. What
// may block goes into [Stream.Async] or an Async method, which run on goroutines.
//
// # Memory
//
// Methods with View in their name lend the proxy's memory for the duration of a
// phase method, and so do the values Stream, Headers and Body themselves. All
// others answer copies.
//
// # Errors
//
// A panic in a phase method or in an asynchronous function, a forgotten decision
// and an error of [Stream.Fail] end their own stream in the way that the operator
// configured: closed as a rule, with status 500. Errors of a configuration refuse
// it. Panics in goroutines that a filter starts by itself end the process: use
// [Env.Go].
package proxyfilter
