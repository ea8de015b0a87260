//go:build !pgdebug

package proxyfilter

import "github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"

// stamp is empty in a normal build: a Stream that outlives its event is not
// detected. Build with -tags pgdebug to make it panic.
type stamp struct{}

func (stamp) check(*bridge.Call) {}

func stampOf(*bridge.Call) stamp { return stamp{} }
