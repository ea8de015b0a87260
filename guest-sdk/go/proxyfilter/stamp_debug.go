//go:build pgdebug

package proxyfilter

// stamp remembers which event a Stream, Headers or Body belongs to.
type stamp struct{ gen uint64 }

func (s stamp) check(c *callState) {
	if c == nil {
		panic("proxyfilter: use of a zero Stream, Headers or Body")
	}
	if s.gen != c.gen {
		panic("proxyfilter: use of a Stream, Headers or Body after its method returned; " +
			"keep copies, Stream.Ref or the AsyncStream instead")
	}
}

func stampOf(c *callState) stamp { return stamp{c.gen} }
