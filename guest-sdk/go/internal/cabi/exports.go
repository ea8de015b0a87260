// Package cabi is the C boundary of the SDK: the only package with cgo. It turns
// events into Go values without copying or allocating, results into the memory
// that the host lends, and never lets a panic or a Go pointer cross.
package cabi

/*
#cgo CFLAGS: -std=gnu11 -O2 -Wall -Wextra -fvisibility=hidden
#cgo linux LDFLAGS: ${SRCDIR}/exports.so
#include "pxgo.h"
*/
import "C"

import (
	"fmt"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

//export pxgoNop
func pxgoNop() {}

//export pxgoInit
func pxgoInit(ctx C.uint64_t, h *C.pxgo_host) { newHost(uint64(ctx), h) }

//export pxgoDescribe
func pxgoDescribe(out *C.pxg_guest) { describe(out) }

//export pxgoEvent
func pxgoEvent(ctx C.uint64_t, ev *C.pxg_event, out *C.pxg_result) {
	h := hosts[ctx-1]
	c := h.call(uint32(ev.worker))
	if c.busy {
		// A host that enters a worker twice at a time is wrong, but is not made worse.
		c = newCall(h)
	}
	c.busy = true
	c.begin(ev, out)
	h.inst.OnEvent(&c.Call)
	c.end()
	c.busy = false
}

//export pxgoConfigNew
func pxgoConfigNew(ctx C.uint64_t, in *C.pxg_config_in, out *C.pxg_config_out) C.int32_t {
	return C.int32_t(hosts[ctx-1].configNew(in, out))
}

//export pxgoConfigDrop
func pxgoConfigDrop(ctx, config C.uint64_t) { hosts[ctx-1].inst.ConfigDrop(uint64(config)) }

//export pxgoCancel
func pxgoCancel(ctx, config, user, stream, token C.uint64_t, worker C.uint32_t) {
	hosts[ctx-1].inst.OnCancel(uint64(config), uint64(user), uint64(stream), uint64(token), uint32(worker))
}

//export pxgoStreamEnd
func pxgoStreamEnd(ctx, config, user, stream C.uint64_t, worker C.uint32_t) {
	hosts[ctx-1].inst.OnStreamEnd(uint64(config), uint64(user), uint64(stream), uint32(worker))
}

//export pxgoWorker
func pxgoWorker(ctx C.uint64_t, worker, up C.uint32_t) {
	h := hosts[ctx-1]
	defer func() {
		if p := recover(); p != nil {
			h.Log(bridge.LogError, fmt.Sprintf("panic: %v (on_worker)", p))
		}
	}()
	h.worker(uint32(worker), up != 0)
	h.inst.OnWorker(uint32(worker), up != 0)
}
