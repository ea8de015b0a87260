// Bundle is one library with all example filters: one Go runtime, many filters.
package main

import (
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/faulty"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/tokencheck"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/examples/traceid"
	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
)

func main() {}
