package cabi

// #include "pxgo.h"
// #include <stdlib.h>
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// host is bridge.Host over the host's table.
type host struct {
	c       *C.pxgo_host
	inst    bridge.Instance
	workers uint32

	calls [C.PXGO_MAX_WORKERS]atomic.Pointer[call]

	consumers [C.PXGO_MAX_WORKERS]consumer
	asyncMu   sync.Mutex
	async     bool
	up        [C.PXGO_MAX_WORKERS]bool
	logOnce   sync.Once
}

var hosts [C.PXGO_MAX_HOSTS]*host

func newHost(ctx uint64, c *C.pxgo_host) {
	h := &host{c: c, workers: uint32(c.table.n_workers)}
	recipeSwitches()
	setProcs(int(h.workers))
	h.inst = bridge.New(h)
	hosts[ctx-1] = h
}

// call is the worker's call memory, made at its first event.
func (h *host) call(worker uint32) *call {
	if worker < C.PXGO_MAX_WORKERS {
		if c := h.calls[worker].Load(); c != nil {
			return c
		}
	}
	return h.firstCall(worker)
}

func (h *host) firstCall(worker uint32) *call {
	c := newCall(h)
	if worker < C.PXGO_MAX_WORKERS {
		h.calls[worker].Store(c)
	}
	return c
}

// describe fills in what a guest says of itself.
func describe(out *C.pxg_guest) {
	o := (*guestNames)(unsafe.Pointer(&out.name))
	name, version := "go-guest", ""
	if bi, ok := debug.ReadBuildInfo(); ok {
		if bi.Path != "" {
			name = bi.Path
		}
		version = bi.Main.Version
	}
	o.name, o.version = constant(name), constant(version)
	f := (*guestFilters)(unsafe.Pointer(&out.filters))
	list := bridge.Filters()
	f.n = uint64(len(list))
	if len(list) == 0 {
		return
	}
	p := C.calloc(C.size_t(len(list)), C.sizeof_pxg_str)
	strs := unsafe.Slice((*str)(p), len(list))
	for i, n := range list {
		strs[i] = constant(n)
	}
	f.filters = uintptr(p)
}

type guestNames struct{ name, version str }

type guestFilters struct {
	filters uintptr
	n       uint64
}

// constant is a copy for the life of the process.
func constant(s string) str {
	if s == "" {
		return str{}
	}
	return str{ptr: uintptr(unsafe.Pointer(C.CString(s))), n: uint32(len(s))}
}

func (h *host) Name() (string, string) {
	t := h.c.table
	return C.GoStringN((*C.char)(unsafe.Pointer(t.name.ptr)), C.int(t.name.len)),
		C.GoStringN((*C.char)(unsafe.Pointer(t.version.ptr)), C.int(t.version.len))
}

func (h *host) Features() (f bridge.Features) {
	for i := range f {
		f[i] = uint64(h.c.table.features[i])
	}
	return f
}

func (h *host) Workers() uint32 { return h.workers }

func (h *host) LogLevel() uint32 {
	t := h.c.table
	if t.log == nil || t.page == nil {
		return bridge.LogOff
	}
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&t.page.log_level)))
}

func (h *host) Draining() bool {
	p := h.c.table.page
	return p != nil && atomic.LoadUint32((*uint32)(unsafe.Pointer(&p.draining))) != 0
}

func (h *host) Log(level uint32, msg string) {
	if level < h.LogLevel() || msg == "" {
		return
	}
	C.pxgo_log(h.c, C.uint32_t(level), (*C.uint8_t)(unsafe.StringData(msg)), C.uint64_t(len(msg)))
}

func (h *host) CanComplete() bool { return h.c.table.complete != nil }

func (h *host) CanApply() bool { return h.c.table.apply != nil && h.c.table.wake != nil }

func (h *host) NewBatch(worker uint32) bridge.Batch { return newBatch(worker) }

func (h *host) Discard(b bridge.Batch) {
	b.Enc().Drop()
	b.(*batch).recycle()
}

func (h *host) Complete(token uint64, bb bridge.Batch, atOnce bool) int32 {
	b := bb.(*batch)
	if b.worker < C.PXGO_MAX_WORKERS && !atOnce && h.consumers[b.worker].collect(token, b) {
		return bridge.OK
	}
	code := C.pxgo_complete(h.c, C.uint64_t(token), b.seal())
	b.recycle()
	return known(code)
}

// known is code, or OK for a positive one that this version does not know (PXG-ABI-013).
func known(code C.int32_t) int32 {
	if int32(code) > bridge.Full {
		return bridge.OK
	}
	return int32(code)
}

func (h *host) Apply(stream uint64, bb bridge.Batch) int32 {
	b := bb.(*batch)
	code := C.pxgo_apply(h.c, C.uint64_t(stream), b.seal())
	b.recycle()
	return known(code)
}

func (h *host) Wake(stream, arg uint64) int32 {
	return known(C.pxgo_wake(h.c, C.uint64_t(stream), C.uint64_t(arg)))
}

// DefineMetric copies everything into one piece of C memory for the call.
func (h *host) DefineMetric(kind uint32, name string, labels []bridge.Field) (uint32, int32) {
	size := unsafe.Sizeof(str{}) + uintptr(len(labels))*bridge.FieldSize + 8 + uintptr(len(name))
	for _, l := range labels {
		size += uintptr(len(l.Name) + len(l.Value))
	}
	p := C.calloc(1, C.size_t(size))
	if p == nil {
		return 0, bridge.ErrLimit
	}
	defer C.free(p)
	strs := unsafe.Slice((*str)(p), 1+2*len(labels))
	id := (*C.uint32_t)(unsafe.Add(p, len(strs)*int(unsafe.Sizeof(str{}))))
	text := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(id), 8)), size-uintptr(len(strs))*unsafe.Sizeof(str{})-8)
	put := func(to *str, s string) {
		if n := copy(text, s); n > 0 {
			*to = str{ptr: uintptr(unsafe.Pointer(unsafe.SliceData(text))), n: uint32(n)}
			text = text[n:]
		}
	}
	put(&strs[0], name)
	for i, l := range labels {
		put(&strs[1+2*i], l.Name)
		put(&strs[2+2*i], l.Value)
	}
	var first *C.pxg_field
	if len(labels) > 0 {
		first = (*C.pxg_field)(unsafe.Pointer(&strs[1]))
	}
	code := C.pxgo_metric_define(h.c, C.uint32_t(kind), (*C.pxg_str)(p), first, C.uint64_t(len(labels)), id)
	return uint32(*id), known(code)
}

func (h *host) RecordMetric(id uint32, value int64) int32 {
	return known(C.pxgo_metric_record(h.c, C.uint32_t(id), C.int64_t(value)))
}

func (h *host) AddInterest(n int) {
	atomic.AddUint32((*uint32)(unsafe.Pointer(&h.c.interest)), uint32(n))
}

func (h *host) configNew(in *C.pxg_config_in, out *C.pxg_config_out) int32 {
	h.logOnce.Do(h.logRecipe)
	ci := bridge.ConfigIn{ValidateOnly: in.flags&C.PXG_CFG_IN_VALIDATE_ONLY != 0,
		Filter: copyText(&in.filter), Name: copyText(&in.name), Bytes: []byte(text(&in.bytes)), Parent: uint64(in.parent)}
	for i := range ci.Features {
		ci.Features[i] = uint64(in.features[i])
	}
	var co bridge.ConfigOut
	code, msg := h.inst.ConfigNew(&ci, &co)
	o := (*configOut)(unsafe.Pointer(out))
	m := &configMemory{h: h, buf: unsafe.Slice((*byte)(out.scratch), int(out.scratch_cap)), addr: o.scratch}
	if code == bridge.OK {
		o.flags, o.config, o.subscribe, o.pendPhases = co.Flags, co.Config, co.Subscribe, co.PendPhases
		o.bodyMode, o.maxBody, o.pendNs = co.BodyMode, co.MaxBody, co.PendNs
		if !m.wants(o, &co) {
			h.inst.ConfigDrop(co.Config)
			o.config, o.attrs, o.nAttrs, o.projection, o.nProjection = 0, 0, 0, 0, 0
			code, msg = bridge.ErrLimit, "the host lends too little scratch for the attributes and fields of this configuration"
		}
	}
	if code != bridge.OK {
		const limit = 1500
		if len(msg) > limit {
			msg = msg[:limit]
		}
		o.errPtr, o.errLen = m.text(msg)
		o.errFlags = 0
		return code
	}
	C.pxgo_cfg_set(h.c, C.uint64_t(co.Config), C.uint64_t(co.AsyncOnly))
	return bridge.OK
}

func copyText(s *C.pxg_str) string { return string([]byte(text(s))) }

// configMemory hands out the scratch of on_config_new.
type configMemory struct {
	h    *host
	buf  []byte
	addr uintptr
}

func (m *configMemory) take(n int) ([]byte, uintptr) {
	pad := int(-m.addr & 15)
	if pad+n > len(m.buf) {
		size := max(n, 4096)
		if m.buf, m.addr = m.h.scratchMore(size); m.buf == nil {
			return nil, 0
		}
		pad = 0
	}
	b, a := m.buf[pad:pad+n:pad+n], m.addr+uintptr(pad)
	m.buf, m.addr = m.buf[pad+n:], a+uintptr(n)
	return b, a
}

func (m *configMemory) text(s string) (uintptr, uint32) {
	b, a := m.take(len(s))
	return a, uint32(copy(b, s))
}

func (m *configMemory) wants(o *configOut, co *bridge.ConfigOut) bool {
	if n := len(co.Attrs); n > 0 {
		b, a := m.take(n * int(unsafe.Sizeof(attrWant{})))
		if b == nil {
			return false
		}
		list := unsafe.Slice((*attrWant)(unsafe.Pointer(unsafe.SliceData(b))), n)
		for i, w := range co.Attrs {
			p, l := m.text(w.Name)
			if int(l) != len(w.Name) {
				return false
			}
			list[i] = attrWant{ptr: p, n: l, phases: w.Phases}
			if w.Required {
				list[i].flags = bridge.AttrRequired
			}
		}
		o.attrs, o.nAttrs = a, uint64(n)
	}
	if n := len(co.Projection); n > 0 {
		b, a := m.take(n * int(unsafe.Sizeof(projection{})))
		if b == nil {
			return false
		}
		list := unsafe.Slice((*projection)(unsafe.Pointer(unsafe.SliceData(b))), n)
		for i, w := range co.Projection {
			p, l := m.text(w.Name)
			if int(l) != len(w.Name) {
				return false
			}
			list[i] = projection{ptr: p, n: l, phases: w.Phases}
		}
		o.projection, o.nProjection = a, uint64(n)
	}
	return true
}

// ---- the recipe's Go side

func init() { bridge.Recipe.Report = report }

// setProcs gives each event loop a processor of its own, and Go two more: else a
// goroutine that computes could keep a loop waiting for its time slice.
func setProcs(workers int) {
	if C.pxgo_steps[C.PXGO_PROCS].state == C.PXGO_OFF {
		return
	}
	was := runtime.GOMAXPROCS(0)
	want := max(workers+2, was)
	if workers == 0 {
		want = max(was, 4)
	}
	if want > was {
		runtime.GOMAXPROCS(want)
	}
	setStep(C.PXGO_PROCS, C.PXGO_DONE, fmt.Sprintf("GOMAXPROCS %d, the host has %d workers", want, workers))
}

func setStep(step, state C.int, detail string) {
	s := C.CString(detail)
	C.pxgo_step_set(step, state, s)
	C.free(unsafe.Pointer(s))
}

func recipeSwitches() {
	for i, name := range bridge.RecipeSteps {
		if bridge.Recipe.Off[name] && C.pxgo_steps[i].state != C.PXGO_OFF {
			setStep(C.int(i), C.PXGO_OFF, "DisableRecipe")
		}
	}
}

func report() []bridge.Step {
	states := [...]string{C.PXGO_UNKNOWN: "unknown", C.PXGO_DONE: "done", C.PXGO_OFF: "off", C.PXGO_SKIPPED: "skipped", C.PXGO_FAILED: "failed"}
	list := make([]bridge.Step, C.PXGO_STEPS)
	for i := range list {
		s := &C.pxgo_steps[i]
		list[i] = bridge.Step{Name: bridge.RecipeSteps[i], State: states[s.state], Detail: C.GoString(&s.detail[0])}
	}
	return list
}

func (h *host) logRecipe() {
	line := "proxy_golang Go runtime recipe"
	for _, s := range report() {
		line += fmt.Sprintf("; %s: %s", s.Name, s.State)
		if s.Detail != "" {
			line += " (" + s.Detail + ")"
		}
	}
	h.Log(bridge.LogInfo, line+fmt.Sprintf("; %s, pid %d", runtime.Version(), os.Getpid()))
}
