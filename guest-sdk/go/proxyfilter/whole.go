package proxyfilter

import (
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
	"slices"
)

// HeaderMap are header or trailer fields by name, in lower case, with all values
// of a name in their order. It is a copy.
type HeaderMap map[string][]string

// Get is the first value of name, "" if there is none.
func (h HeaderMap) Get(name string) string {
	if v := h[lower(name)]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set leaves one value for name.
func (h HeaderMap) Set(name, value string) { h[lower(name)] = []string{value} }

// Add appends a value for name.
func (h HeaderMap) Add(name, value string) {
	name = lower(name)
	h[name] = append(h[name], value)
}

// Del removes name.
func (h HeaderMap) Del(name string) { delete(h, lower(name)) }

// Flags say which parts of a [Message] count.
type Flags uint32

// The flags of a [Message].
const (
	// SetHeaders, SetBody and SetTrailers put the part in the place of the message's.
	SetHeaders Flags = 1 << iota
	SetBody
	SetTrailers
	// LocalReply answers the request with the message, whose status is Headers[":status"].
	LocalReply
)

// Message is the answer of ProxyGolangRequest and ProxyGolangResponse. The zero
// Message leaves everything as it is.
type Message struct {
	Headers  HeaderMap
	Body     []byte
	Trailers HeaderMap
	Flags    Flags
}

func headerMap(f []bridge.RawField) HeaderMap {
	m := make(HeaderMap, len(f))
	for _, f := range cloneFields(f) {
		m[f.Name] = append(m[f.Name], f.Value)
	}
	return m
}

// whole runs a whole-message method and turns its answer into operations.
func (c *callState) whole(s Stream, fn func(HeaderMap, []byte, HeaderMap) Message) Action {
	if c.Ev.Flags&bridge.EvWholeBody == 0 { // over the limit: there is no whole message
		return c.failf("the body is larger than the limit for ProxyGolangRequest and ProxyGolangResponse")
	}
	before, trailersBefore := headerMap(c.Headers.F), headerMap(c.Trailers.F)
	m := fn(headerMap(c.Headers.F), s.Body().Bytes(), headerMap(c.Trailers.F))
	if m.Flags&LocalReply != 0 {
		r := Reply{Body: m.Body, Trailers: sorted(m.Trailers)}
		for _, f := range sorted(m.Headers) {
			if f.Name != ":status" {
				r.Header = append(r.Header, f)
			}
		}
		r.Status = statusOf(m.Headers.Get(":status"))
		return s.Reply(r)
	}
	if m.Flags&SetHeaders != 0 {
		diff(c.headers(), before, m.Headers)
	}
	if m.Flags&SetBody != 0 {
		s.Body().Replace(m.Body)
	}
	if m.Flags&SetTrailers != 0 {
		diff(c.trailers(), trailersBefore, m.Trailers)
	}
	return Continue
}

func diff(h Headers, before, after HeaderMap) {
	for name := range before {
		if len(after[name]) == 0 {
			h.Del(name)
		}
	}
	for _, name := range names(after) {
		v := after[name]
		if len(v) == 0 || slices.Equal(v, before[name]) {
			continue
		}
		h.Set(name, v[0])
		for _, v := range v[1:] {
			h.Add(name, v)
		}
	}
}

func names(h HeaderMap) []string {
	n := make([]string, 0, len(h))
	for k := range h {
		n = append(n, k)
	}
	slices.Sort(n)
	return n
}

func sorted(h HeaderMap) []Field {
	var f []Field
	for _, n := range names(h) {
		for _, v := range h[n] {
			f = append(f, Field{Name: n, Value: v})
		}
	}
	return f
}
