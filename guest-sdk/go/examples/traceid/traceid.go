// Package traceid gives each request a trace id: the one it came with, if that is
// well-formed, else a new one. The upstream and the client both get to see it.
package traceid

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// Name is the filter's name.
const Name = "trace-id"

// Config is the filter's configuration.
type Config struct {
	// Header carries the id; x-trace-id by default.
	Header string `json:"header"`
	// TrustClient keeps a well-formed id that the request came with; true by default.
	TrustClient *bool `json:"trust_client"`
}

// Provision sets the defaults.
func (c *Config) Provision(*proxyfilter.Env) error {
	if c.Header == "" {
		c.Header = "x-trace-id"
	}
	if c.TrustClient == nil {
		yes := true
		c.TrustClient = &yes
	}
	return nil
}

// Validate refuses what is no header name.
func (c *Config) Validate() error {
	for i := range len(c.Header) {
		b := c.Header[i]
		if !(b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-' || b == '_') {
			return fmt.Errorf("header %q: use a field name of lower case letters, digits, - and _", c.Header)
		}
	}
	return nil
}

const idLen = 32 // hexadecimal digits

// stream remembers the id from the request for the response. The proxy reuses it
// for other streams, so that a request costs no allocation.
type stream struct {
	cfg *Config
	id  [idLen]byte
	ok  bool
}

type filter struct{ cfg *Config }

func (f *filter) NewStream() any { return &stream{cfg: f.cfg} }

func (s *stream) Reset() { s.ok = false }

func (s *stream) OnRequestHeaders(st proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	if v, ok := h.GetView(s.cfg.Header); ok && *s.cfg.TrustClient && wellFormed(v) {
		copy(s.id[:], v)
		s.ok = true
		return proxyfilter.Continue
	}
	if err := s.generate(); err != nil {
		return st.Fail(err)
	}
	h.Set(s.cfg.Header, string(s.id[:]))
	return proxyfilter.Continue
}

func (s *stream) OnResponseHeaders(st proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	// A response of a stream whose request never came here gets none.
	if s.ok {
		h.Set(s.cfg.Header, string(s.id[:]))
	}
	return proxyfilter.Continue
}

func (s *stream) generate() error {
	var raw [idLen / 2]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return errors.Join(errors.New("no random bytes for a trace id"), err)
	}
	hex.Encode(s.id[:], raw[:])
	s.ok = true
	return nil
}

func wellFormed(v string) bool {
	if len(v) != idLen {
		return false
	}
	for i := range len(v) {
		if c := v[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

func init() {
	proxyfilter.Register(Name, func(c *Config, _ *proxyfilter.Env) (proxyfilter.Filter, error) {
		return &filter{cfg: c}, nil
	})
}
