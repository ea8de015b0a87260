package tokencheck_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/tokencheck"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

// authority answers on a loopback socket, by token.
func authority(t *testing.T) (url string, asked *atomic.Int64) {
	asked = new(atomic.Int64)
	hold := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.Header.Get("Authorization") {
		case "Bearer good":
			w.Header().Set("X-Subject", "alice")
		case "Bearer nameless":
		case "Bearer banned":
			w.WriteHeader(http.StatusForbidden)
		case "Bearer broken":
			w.WriteHeader(http.StatusInternalServerError)
		case "Bearer redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "Bearer slow":
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(func() { close(hold); s.Close() })
	return s.URL, asked
}

func config(url string, timeout int) string {
	return fmt.Sprintf(`{"authority": %q, "timeout_ms": %d}`, url, timeout)
}

func TestTokens(t *testing.T) {
	url, asked := authority(t)
	for _, c := range []struct {
		token   string
		status  int
		subject string
	}{
		{"", 401, ""},
		{"Bearer good", 200, "alice"},
		{"Bearer nameless", 200, ""},
		{"Bearer unknown", 401, ""},
		{"Bearer banned", 403, ""},
		{"Bearer broken", 503, ""},
		{"Bearer redirect", 503, ""},
	} {
		t.Run(c.token, func(t *testing.T) {
			proxyfiltertest.Sweep(t, tokencheck.Name, config(url, 20000), func(t *testing.T, h *proxyfiltertest.Host) {
				before := asked.Load()
				// A client may not name itself.
				req := proxyfiltertest.Request{Header: []proxyfilter.Field{proxyfilter.F("x-subject", "mallory")}, Body: []byte("b")}
				if c.token != "" {
					req.Header = append(req.Header, proxyfilter.F("authorization", c.token))
				}
				ex := h.Do(req, nil)
				if ex.Status != c.status {
					t.Fatalf("status %d, failure %q", ex.Status, ex.Failure)
				}
				if (ex.Upstream != nil) != (c.status == 200) {
					t.Fatalf("upstream: %+v", ex.Upstream)
				}
				if ex.Upstream != nil && ex.Upstream.Get("x-subject") != c.subject {
					t.Errorf("subject %q", ex.Upstream.Get("x-subject"))
				}
				if c.status == 401 && ex.Get("www-authenticate") == "" {
					t.Error("401 without www-authenticate")
				}
				if got := asked.Load() - before; got != 1 && c.token != "" || got != 0 && c.token == "" {
					t.Errorf("the authority was asked %d times", got)
				}
			})
		})
	}
}

func TestTimeout(t *testing.T) {
	url, _ := authority(t)
	h := proxyfiltertest.New(t, tokencheck.Name, config(url, 20))
	ex := h.Do(proxyfiltertest.Request{Header: []proxyfilter.Field{proxyfilter.F("authorization", "Bearer slow")}}, nil)
	if ex.Status != 503 || !h.Logged("did not answer") {
		t.Errorf("status %d, log %q", ex.Status, h.Logs())
	}
}

func TestAuthorityIsDown(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	h := proxyfiltertest.New(t, tokencheck.Name, config(s.URL, 1000))
	ex := h.Do(proxyfiltertest.Request{Header: []proxyfilter.Field{proxyfilter.F("authorization", "Bearer good")}}, nil)
	if ex.Status != 503 || ex.Upstream != nil {
		t.Errorf("status %d", ex.Status)
	}
}

// A client that goes away ends the question: the slow authority would hold it for ever.
func TestClientGoesAway(t *testing.T) {
	url, _ := authority(t)
	h := proxyfiltertest.New(t, tokencheck.Name, config(url, 3600000))
	ex := h.DoAndCancel(proxyfiltertest.Request{Header: []proxyfilter.Field{proxyfilter.F("authorization", "Bearer slow")}}, nil, 2)
	if !ex.Cancelled {
		t.Errorf("%+v", ex)
	}
	proxyfiltertest.Survive(t, tokencheck.Name, config(url, 20000),
		proxyfiltertest.Request{Header: []proxyfilter.Field{proxyfilter.F("authorization", "Bearer good")}}, nil)
}

func TestRefusedConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		``: "authority", `{"authority": "127.0.0.1:80"}`: "http://127.0.0.1:9000/check", `{"authority": "http://a", "timeout_ms": -1}`: "negative",
	} {
		if got := proxyfiltertest.Refused(t, tokencheck.Name, config); !strings.Contains(got, want) {
			t.Errorf("%s is refused with %q", config, got)
		}
	}
	got := proxyfiltertest.Refused(t, tokencheck.Name, `{"authority": "http://a"}`, proxyfiltertest.WithoutAsync())
	if !strings.Contains(got, "PEND_REQUEST_HEADERS") {
		t.Errorf("a host that can't wait: %q", got)
	}
}
