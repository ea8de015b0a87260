// Package proxyfiltertest runs a filter in plain go test: no proxy, no cgo.
//
// It is a small host in the test's process. It delivers the phases as the
// specification says, splits bodies at random (whole, byte by byte, anywhere),
// lets asynchronous decisions come before or after the event has returned, and
// makes the memory of each view unreadable rubbish as soon as its event is over:
// a filter that keeps one fails its test, with the name of the field.
//
//	func TestGreets(t *testing.T) {
//		proxyfiltertest.Sweep(t, "hello", `{"name": "world"}`, func(t *testing.T, h *proxyfiltertest.Host) {
//			ex := h.Do(proxyfiltertest.Request{Path: "/"}, nil)
//			if got := ex.Upstream.Get("x-hello"); got != "world" {
//				t.Errorf("x-hello: %q", got)
//			}
//		})
//	}
//
// Everything random comes from a seed. A test that fails says which one, and
// how to run just that one again.
package proxyfiltertest
