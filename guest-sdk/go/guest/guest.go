// Package guest makes a Go program a guest library for proxies that speak the
// proxy_golang ABI. Import it for its side effect in the main package:
//
//	package main
//
//	import (
//		_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
//		_ "example.com/myfilters" // calls proxyfilter.Register
//	)
//
//	func main() {}
//
// and build it with
//
//	go build -buildmode=c-shared -o myfilters.so .
package guest

import (
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/cabi" // the entry point
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"   // the engine behind it
)
