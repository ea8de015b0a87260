package cabi

// #include "pxgo.h"
import "C"

import (
	"unsafe"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// configOut is pxg_config_out with addresses as integers, see bridge.Result.
type configOut struct {
	size, flags      uint32
	config           uint64
	subscribe        uint64
	pendPhases       uint64
	bodyMode         [2]uint32
	maxBody          [2]uint64
	pendNs           uint64
	attrs            uintptr
	nAttrs           uint64
	projection       uintptr
	nProjection      uint64
	errPtr           uintptr
	errLen, errFlags uint32
	scratch          uintptr
	scratchCap       uint64
}

type attrWant struct {
	ptr        uintptr
	n, nflags  uint32
	phases     uint64
	flags, pad uint32
}

type projection struct {
	ptr       uintptr
	n, nflags uint32
	phases    uint64
}

// str is pxg_str.
type str struct {
	ptr      uintptr
	n, flags uint32
}

// same fails to compile unless a equals b: an index other than 0 is out of range.
func _() {
	same := [1]struct{}{}
	// Sizes.
	_ = same[unsafe.Sizeof(bridge.Op{})-C.sizeof_pxg_op]
	_ = same[bridge.OpSize-C.sizeof_pxg_op]
	_ = same[unsafe.Sizeof(bridge.RawField{})-C.sizeof_pxg_field]
	_ = same[unsafe.Sizeof(bridge.Event{})-C.sizeof_pxg_event]
	_ = same[bridge.FieldSize-C.sizeof_pxg_field]
	_ = same[bridge.BufSize-C.sizeof_pxg_buf]
	_ = same[bridge.ReplySize-C.sizeof_pxg_reply]
	_ = same[unsafe.Sizeof(bridge.Result{})-C.sizeof_pxg_result]
	_ = same[unsafe.Sizeof(configOut{})-C.sizeof_pxg_config_out]
	_ = same[unsafe.Sizeof(attrWant{})-C.sizeof_pxg_attr_want]
	_ = same[unsafe.Sizeof(projection{})-C.sizeof_pxg_projection]
	_ = same[unsafe.Sizeof(str{})-C.sizeof_pxg_str]
	_ = same[unsafe.Sizeof("")-C.sizeof_pxg_str]

	// Offsets.
	var op bridge.Op
	var cop C.pxg_op
	_ = same[unsafe.Offsetof(op.Kind)-unsafe.Offsetof(cop.kind)]
	_ = same[unsafe.Offsetof(op.Flags)-unsafe.Offsetof(cop.flags)]
	_ = same[unsafe.Offsetof(op.Target)-unsafe.Offsetof(cop.target)]
	_ = same[unsafe.Offsetof(op.U0)-unsafe.Offsetof(cop.u0)]
	_ = same[unsafe.Offsetof(op.KeyPtr)-unsafe.Offsetof(cop.key)]
	_ = same[unsafe.Offsetof(op.ValPtr)-unsafe.Offsetof(cop.val)]
	_ = same[unsafe.Offsetof(op.Release)-unsafe.Offsetof(cop.val)-unsafe.Offsetof(cop.val.release)]
	_ = same[unsafe.Offsetof(op.Ctx)-unsafe.Offsetof(cop.val)-unsafe.Offsetof(cop.val.ctx)]
	var r bridge.Result
	var cr C.pxg_result
	_ = same[unsafe.Offsetof(r.Size)-unsafe.Offsetof(cr.size)]
	_ = same[unsafe.Offsetof(r.Action)-unsafe.Offsetof(cr.action)]
	_ = same[unsafe.Offsetof(r.Flags)-unsafe.Offsetof(cr.flags)]
	_ = same[unsafe.Offsetof(r.User)-unsafe.Offsetof(cr.user)]
	_ = same[unsafe.Offsetof(r.Ops)-unsafe.Offsetof(cr.ops)]
	_ = same[unsafe.Offsetof(r.NOps)-unsafe.Offsetof(cr.n_ops)]
	_ = same[unsafe.Offsetof(r.Reply)-unsafe.Offsetof(cr.reply)]
	_ = same[unsafe.Offsetof(r.Unsubscribe)-unsafe.Offsetof(cr.unsubscribe)]
	_ = same[unsafe.Offsetof(r.BodyMode)-unsafe.Offsetof(cr.body_mode)]
	_ = same[unsafe.Offsetof(r.MoreBytes)-unsafe.Offsetof(cr.more_bytes)]
	_ = same[unsafe.Offsetof(r.PendNs)-unsafe.Offsetof(cr.pend_ns)]
	_ = same[unsafe.Offsetof(r.ErrPtr)-unsafe.Offsetof(cr.error)]
	_ = same[unsafe.Offsetof(r.ScratchOps)-unsafe.Offsetof(cr.scratch_ops)]
	_ = same[unsafe.Offsetof(r.ScratchOpsCap)-unsafe.Offsetof(cr.scratch_ops_cap)]
	_ = same[unsafe.Offsetof(r.Scratch)-unsafe.Offsetof(cr.scratch)]
	_ = same[unsafe.Offsetof(r.ScratchCap)-unsafe.Offsetof(cr.scratch_cap)]
	var ev bridge.Event
	var cev C.pxg_event
	_ = same[unsafe.Offsetof(ev.Size)-unsafe.Offsetof(cev.size)]
	_ = same[unsafe.Offsetof(ev.Phase)-unsafe.Offsetof(cev.phase)]
	_ = same[unsafe.Offsetof(ev.Flags)-unsafe.Offsetof(cev.flags)]
	_ = same[unsafe.Offsetof(ev.Worker)-unsafe.Offsetof(cev.worker)]
	_ = same[unsafe.Offsetof(ev.Config)-unsafe.Offsetof(cev.config)]
	_ = same[unsafe.Offsetof(ev.User)-unsafe.Offsetof(cev.user)]
	_ = same[unsafe.Offsetof(ev.Stream)-unsafe.Offsetof(cev.stream)]
	_ = same[unsafe.Offsetof(ev.Token)-unsafe.Offsetof(cev.token)]
	_ = same[unsafe.Offsetof(ev.Arg)-unsafe.Offsetof(cev.arg)]
	_ = same[unsafe.Offsetof(ev.BodyOffset)-unsafe.Offsetof(cev.body_offset)]
	var j bridge.Job
	var cj C.pxgo_job
	_ = same[unsafe.Sizeof(bridge.Job{})-unsafe.Offsetof(cj.home)]
	_ = same[unsafe.Offsetof(j.Next)-unsafe.Offsetof(cj.next)]
	_ = same[unsafe.Offsetof(j.Ev)-unsafe.Offsetof(cj.ev)]
	_ = same[unsafe.Offsetof(j.Fields)-unsafe.Offsetof(cj.fields)]
	_ = same[unsafe.Offsetof(j.Trailers)-unsafe.Offsetof(cj.trailers)]
	_ = same[unsafe.Offsetof(j.Attrs)-unsafe.Offsetof(cj.attrs)]
	_ = same[unsafe.Offsetof(j.Body)-unsafe.Offsetof(cj.body)]
	_ = same[unsafe.Sizeof(bridge.Attr{})-C.sizeof_pxgo_attr]
	_ = same[unsafe.Offsetof(bridge.Attr{}.Present)-unsafe.Offsetof(C.pxgo_attr{}.present)]
	var co configOut
	var cco C.pxg_config_out
	_ = same[unsafe.Offsetof(co.config)-unsafe.Offsetof(cco.config)]
	_ = same[unsafe.Offsetof(co.subscribe)-unsafe.Offsetof(cco.subscribe)]
	_ = same[unsafe.Offsetof(co.pendPhases)-unsafe.Offsetof(cco.pend_phases)]
	_ = same[unsafe.Offsetof(co.bodyMode)-unsafe.Offsetof(cco.body_mode)]
	_ = same[unsafe.Offsetof(co.maxBody)-unsafe.Offsetof(cco.max_body)]
	_ = same[unsafe.Offsetof(co.pendNs)-unsafe.Offsetof(cco.pend_ns)]
	_ = same[unsafe.Offsetof(co.attrs)-unsafe.Offsetof(cco.attrs)]
	_ = same[unsafe.Offsetof(co.projection)-unsafe.Offsetof(cco.projection)]
	_ = same[unsafe.Offsetof(co.errPtr)-unsafe.Offsetof(cco.error)]
	_ = same[unsafe.Offsetof(co.scratch)-unsafe.Offsetof(cco.scratch)]
	// The reply is written as bytes, at these offsets.
	var cp C.pxg_reply
	_ = same[4-unsafe.Offsetof(cp.status)]
	_ = same[8-unsafe.Offsetof(cp.flags)]
	_ = same[12-unsafe.Offsetof(cp.grpc_status)]
	_ = same[16-unsafe.Offsetof(cp.fields)]
	_ = same[32-unsafe.Offsetof(cp.body)]
	_ = same[48-unsafe.Offsetof(cp.trailers)]
	_ = same[64-unsafe.Offsetof(cp.details)]
}
