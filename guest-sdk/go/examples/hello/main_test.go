package main

import (
	"testing"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

func TestGreets(t *testing.T) {
	proxyfiltertest.Sweep(t, "hello", `{"name": "world"}`, func(t *testing.T, h *proxyfiltertest.Host) {
		ex := h.Do(proxyfiltertest.Request{Path: "/"}, nil)
		if got := ex.Upstream.Get("x-hello"); got != "world" {
			t.Errorf("x-hello: %q", got)
		}
	})
}
