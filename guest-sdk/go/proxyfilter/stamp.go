//go:build !pgdebug

package proxyfilter

// stamp is empty in a normal build: a Stream that outlives its event is not
// detected. Build with -tags pgdebug to make it panic.
type stamp struct{}

func (stamp) check(*callState) {}

func stampOf(*callState) stamp { return stamp{} }
