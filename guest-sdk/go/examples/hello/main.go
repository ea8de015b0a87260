// Hello is the smallest useful guest: it greets the upstream, by the name in its
// configuration ({"name": "world"}).
package main

import (
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

type hello struct {
	Name string `json:"name"`
}

func (f *hello) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	h.Set("x-hello", f.Name)
	return proxyfilter.Continue
}

func init() {
	proxyfilter.Register("hello", func(f *hello, _ *proxyfilter.Env) (proxyfilter.Filter, error) { return f, nil })
}

func main() {}
