package faulty_test

import (
	"strings"
	"testing"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/faulty"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

func TestEachFaultHitsItsOwnStreamOnly(t *testing.T) {
	want := map[string]string{ // the failure's text; "" for none
		"panic": "panic, as asked for", "nil": "nil pointer", "zero-action": "zero Action", "error": "error, as asked for",
		"many": "", "block": "", "async-panic": "panic in a goroutine, as asked for", "async-goexit": "Goexit",
		"async-forget": "without a decision", "async-late": "", "async-twice": "", "async-nothing": "",
		"unreturned": "did not return its action", "no such fault": "unknown fault",
	}
	proxyfiltertest.Sweep(t, faulty.Name, `{"millis": 1}`, func(t *testing.T, h *proxyfiltertest.Host) {
		for fault, text := range want {
			ex := h.Do(proxyfiltertest.Request{Header: []proxyfilter.Field{proxyfilter.F(faulty.Header, fault)}}, nil)
			if text == "" && (ex.Failure != "" || ex.Status != 200) {
				t.Errorf("%s: status %d, failure %q", fault, ex.Status, ex.Failure)
			}
			if text != "" && (!strings.Contains(ex.Failure, text) || ex.Status != 500 || ex.Upstream != nil) {
				t.Errorf("%s: status %d, failure %q, want %q", fault, ex.Status, ex.Failure, text)
			}
			if fault == "many" && ex.Upstream.Get("x-many-199") != strings.Repeat("m", 199) {
				t.Error("many: fields are missing")
			}
			if ex := h.Do(proxyfiltertest.Request{}, nil); ex.Status != 200 {
				t.Fatalf("the next stream after %s: %+v", fault, ex)
			}
		}
	})
}

func TestReset(t *testing.T) {
	ex := proxyfiltertest.New(t, faulty.Name, `{"fault": "reset"}`).Do(proxyfiltertest.Request{}, nil)
	if !ex.Reset || ex.Status != 0 {
		t.Errorf("%+v", ex)
	}
}

func TestNeverDecidesUntilTheStreamDies(t *testing.T) {
	h := proxyfiltertest.New(t, faulty.Name, `{"fault": "async-never"}`)
	if ex := h.DoAndCancel(proxyfiltertest.Request{}, nil, 2); !ex.Cancelled {
		t.Errorf("%+v", ex)
	}
}

func TestRefusedConfiguration(t *testing.T) {
	for config, want := range map[string]string{`{"fault": "refuse"}`: "as asked for", `{"fault": "x"}`: "async-panic", `{"faults": ""}`: "faults"} {
		if got := proxyfiltertest.Refused(t, faulty.Name, config); !strings.Contains(got, want) {
			t.Errorf("%s is refused with %q", config, got)
		}
	}
}
