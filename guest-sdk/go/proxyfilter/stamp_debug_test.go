//go:build pgdebug

package proxyfilter_test

import (
	"strings"
	"testing"

	pf "github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

// keeper uses the Stream and the Headers of the first event in the second one.
type keeper struct {
	s    pf.Stream
	h    pf.Headers
	what string
}

func (k *keeper) OnRequestHeaders(s pf.Stream, h pf.Headers) pf.Action {
	k.s, k.h = s, h
	return pf.Continue
}

func (k *keeper) OnResponseHeaders(pf.Stream, pf.Headers) pf.Action {
	defer func() { k.s, k.h = pf.Stream{}, pf.Headers{} }()
	switch k.what {
	case "stream":
		k.s.EndStream()
	case "get":
		k.h.Get("a")
	case "set":
		k.h.Set("a", "b")
	}
	return pf.Continue
}

func TestStaleUsePanics(t *testing.T) {
	for _, what := range []string{"stream", "get", "set"} {
		h := proxyfiltertest.New(t, use(&keeper{what: what}), "")
		ex := h.Do(proxyfiltertest.Request{}, nil)
		if !strings.Contains(ex.Failure, "after its method returned") {
			t.Errorf("%s: failure %q", what, ex.Failure)
		}
	}
}
