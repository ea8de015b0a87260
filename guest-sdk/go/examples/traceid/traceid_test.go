package traceid_test

import (
	"strings"
	"testing"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/traceid"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfiltertest"
)

const good = "0123456789abcdef0123456789abcdef"

func TestTraceID(t *testing.T) {
	for _, c := range []struct {
		name, config, header, sent string
		kept                       bool
	}{
		{"none", `{}`, "x-trace-id", "", false},
		{"kept", `{}`, "x-trace-id", good, true},
		{"too short", `{}`, "x-trace-id", good[1:], false},
		{"upper case", `{}`, "x-trace-id", strings.ToUpper(good), false},
		{"not hexadecimal", `{}`, "x-trace-id", "g" + good[1:], false},
		{"not trusted", `{"trust_client": false}`, "x-trace-id", good, false},
		{"another header", `{"header": "x-request-id"}`, "x-request-id", good, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxyfiltertest.Sweep(t, traceid.Name, c.config, func(t *testing.T, h *proxyfiltertest.Host) {
				seen := map[string]bool{}
				for range 3 {
					req := proxyfiltertest.Request{Body: []byte("untouched")}
					if c.sent != "" {
						req.Header = append(req.Header, proxyfilter.F(c.header, c.sent))
					}
					ex := h.Do(req, nil)
					id := ex.Upstream.Get(c.header)
					if len(id) != 32 || id != ex.Get(c.header) {
						t.Errorf("upstream got %q, the client %q", id, ex.Get(c.header))
					}
					if (id == c.sent) != c.kept {
						t.Errorf("sent %q, got %q", c.sent, id)
					}
					if !c.kept && seen[id] {
						t.Errorf("the id %q came twice", id)
					}
					seen[id] = true
					if n := count(ex.Header, c.header); n != 1 {
						t.Errorf("the response has %d fields %s", n, c.header)
					}
				}
			})
		})
	}
}

func count(f []proxyfilter.Field, name string) (n int) {
	for _, f := range f {
		if f.Name == name {
			n++
		}
	}
	return n
}

func TestRefusedConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		`{"header": "X Y"}`: `"X Y"`,
		`{"heder": "x"}`:    `heder`,
		`[]`:                `Config`,
		`{"header": `:       `not JSON`,
	} {
		if got := proxyfiltertest.Refused(t, traceid.Name, config); !strings.Contains(got, want) {
			t.Errorf("%s is refused with %q, want %q in it", config, got, want)
		}
	}
}

func TestClientGoesAway(t *testing.T) {
	proxyfiltertest.Survive(t, traceid.Name, `{}`, proxyfiltertest.Request{Body: []byte("body")}, nil)
}
