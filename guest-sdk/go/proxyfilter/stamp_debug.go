//go:build pgdebug

package proxyfilter

import "github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"

// stamp remembers which event a Stream, Headers or Body belongs to.
type stamp struct{ gen uint64 }

func (s stamp) check(c *bridge.Call) {
	if s.gen != c.Gen {
		panic("proxyfilter: use of a Stream, Headers or Body after its method returned; " +
			"keep copies, Stream.Ref or the AsyncStream instead")
	}
}

func stampOf(c *bridge.Call) stamp { return stamp{c.Gen} }
