// Go is the library of the Envoy tests: the example filters, and one that panics
// in the phase that a request asks for. One library, because a process should have
// one Go runtime.
package main

import (
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/faulty"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/tokencheck"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/traceid"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// panics panics in the phase that the request's field x-panic names.
type panics struct{}

func (panics) NewStream() any { return &stream{} }

type stream struct{ phase string }

func (s *stream) Reset() { s.phase = "" }

func (s *stream) at(phase string) proxyfilter.Action {
	if s.phase == phase {
		panic("panics: " + phase + ", as asked for")
	}
	return proxyfilter.Continue
}

func (s *stream) OnRequestHeaders(_ proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	s.phase = h.Get("x-panic")
	return s.at("request_headers")
}

func (s *stream) OnRequestBody(proxyfilter.Stream, proxyfilter.Body) proxyfilter.Action {
	return s.at("request_body")
}

func (s *stream) OnRequestTrailers(proxyfilter.Stream, proxyfilter.Headers) proxyfilter.Action {
	return s.at("request_trailers")
}

func (s *stream) OnResponseHeaders(proxyfilter.Stream, proxyfilter.Headers) proxyfilter.Action {
	return s.at("response_headers")
}

func (s *stream) OnResponseBody(proxyfilter.Stream, proxyfilter.Body) proxyfilter.Action {
	return s.at("response_body")
}

func (s *stream) OnResponseTrailers(proxyfilter.Stream, proxyfilter.Headers) proxyfilter.Action {
	return s.at("response_trailers")
}

func (s *stream) OnLog(proxyfilter.Stream, proxyfilter.End) { s.at("log") }

func init() {
	proxyfilter.Register("panics",
		func(*struct{}, *proxyfilter.Env) (proxyfilter.Filter, error) { return panics{}, nil },
		proxyfilter.RequestBody(proxyfilter.BodyStream, 0), proxyfilter.ResponseBody(proxyfilter.BodyStream, 0))
}

func main() {}
