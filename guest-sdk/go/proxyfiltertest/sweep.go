package proxyfiltertest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// Seeds is how many seeds Sweep and Survive try: 32, or what the environment
// variable PROXY_GOLANG_TEST_SEEDS says.
func Seeds() int {
	if n, err := strconv.Atoi(os.Getenv("PROXY_GOLANG_TEST_SEEDS")); err == nil && n > 0 {
		return n
	}
	return 32
}

// Sweep runs fn once for each seed, with a host of its own: each splits bodies
// and times decisions differently.
func Sweep(t *testing.T, filter, config string, fn func(t *testing.T, h *Host), opts ...Option) {
	t.Helper()
	sweep(t, filter, config, fn, opts)
}

func sweep(t *testing.T, filter, config string, fn func(t *testing.T, h *Host), opts []Option) {
	t.Helper()
	for seed := range Seeds() {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Helper()
			fn(t, newHost(t, uint64(seed), filter, config, opts))
		})
		if !ok {
			t.Logf("seed %d failed; to repeat it: PROXY_GOLANG_TEST_SEEDS=%d go test -run '^%s$/^seed=%d$'", seed, seed+1, t.Name(), seed)
			return
		}
	}
}

// Survive sends the request again and again and ends the stream each time at
// another, random step, as a client does that goes away. The filter must let go
// of everything: its asynchronous functions must end, no view may stay behind.
func Survive(t *testing.T, filter, config string, req Request, up Upstream, opts ...Option) {
	t.Helper()
	sweep(t, filter, config, func(t *testing.T, h *Host) {
		t.Helper()
		whole := h.do(req, up, 0)
		for range 4 {
			ex := h.do(req, up, 1+h.intn(2*len(whole.Events)+2))
			if ex.Failure != "" && !ex.Cancelled && whole.Failure == "" {
				t.Errorf("the filter failed on a stream after others had been cut: %s", ex.Failure)
			}
		}
	}, opts)
}

// DoAndCancel is Do for a client that goes away at a step of the stream, counted
// from 1: each event and each wait for a decision is one.
func (h *Host) DoAndCancel(req Request, up Upstream, step int) *Exchange {
	h.t.Helper()
	return h.do(req, up, step)
}
