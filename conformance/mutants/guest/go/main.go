// The Go guest of the self-test, written against the header alone. Built once, it
// is clean under its own name; a copy under the name of a mutant has that defect.
//
// clean go-guest warns PXG-RT-004: headers, goroutines that complete, a contained panic, OWNED buffers
//
// mutant go-late-read PXG-MEM-002: a goroutine reads a header view after the return
// mutant go-swallowed-fault PXG-MEM-002: the same, under recover and SetPanicOnFault
// mutant go-late-system-call PXG-MEM-002 needs mem/late-system-call: a goroutine writes a header view to a pipe after the return
// mutant go-heap-pointer PXG-MEM-011: hands out a pointer into Go's heap that nothing pins
// mutant go-typed-pointers PXG-MEM-010 also PXG-RT-005: writes operations through Go pointers while it collects
// mutant go-handle-is-pointer PXG-ABI-009 also PXG-RT-005: keeps the stream's handle in a pointer while its stack grows
// mutant go-no-barrier PXG-ABI-007: indexes the fields without a look, and recovers from nothing
// mutant go-panic-in-goroutine PXG-ERR-002: a goroutine panics, and nothing contains it
// mutant go-panic-without-prefix PXG-ERR-006: reports a contained panic in words of its own
// mutant go-one-processor PXG-RT-005: runs all loop threads on one processor
// mutant go-release-export PXG-MEM-007: release is an export of the Go runtime
// mutant go-leaks-requests PXG-CFG-005: keeps every stream in a map
// mutant go-leaks-goroutines PXG-CFG-005: starts a goroutine for each stream that waits for nothing
// mutant go-leaks-configuration PXG-CFG-005: keeps what a configuration needed
package main

/*
#cgo linux LDFLAGS: ${SRCDIR}/exports.so
#include "entry.h"
*/
import "C"

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// The defect: the name of the library's file.
var mutant string

func main() {}

// Operations and strings with addresses as numbers: the write barrier must not
// look at what an earlier call left in the host's memory.
type rawStr struct {
	ptr        uintptr
	len, flags uint32
}

type rawOp struct {
	kind, flags  uint16
	target       uint32
	u0           uint64
	key, val     rawStr
	release, ctx uintptr
}

var (
	lock    sync.Mutex
	next    uint64
	kinds   = map[uint64]string{}
	kept    [][]byte
	streams = map[uint64]*stream{}
	texts   = map[string]uintptr{}
	sink    byte
	escape  []byte
	collect sync.Once
)

// What a filter may keep of a request.
type stream struct {
	path  string
	began time.Time
}

// Text that lives in C as long as the process.
func text(s string) rawStr {
	lock.Lock()
	defer lock.Unlock()
	p := texts[s]
	if p == 0 {
		p = uintptr(unsafe.Pointer(C.CString(s)))
		texts[s] = p
	}
	return rawStr{ptr: p, len: uint32(len(s))}
}

//export goInit
func goInit(workers C.uint32_t, name *C.char) {
	lock.Lock()
	mutant = strings.TrimSuffix(C.GoString(name), ".so")
	lock.Unlock()
	if mutant == "go-one-processor" {
		runtime.GOMAXPROCS(1)
	} else if want := int(workers) + 2; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
}

//export goWorker
func goWorker(ctx C.uint64_t, worker, up C.uint32_t) {}

//export goRelease
func goRelease(p C.uint64_t) { C.free(unsafe.Pointer(uintptr(p))) }

//export goConfigNew
func goConfigNew(ctx C.uint64_t, in *C.pxg_config_in, out *C.pxg_config_out) C.int32_t {
	name := string(view(in.filter))
	copied := append([]byte(nil), view(in.bytes)...)
	if name != "go" && name != "go-async" && name != "go-panics" {
		return C.PXG_E_NOTFOUND
	}
	if name == "go-async" && in.features[0]&(1<<C.PXG_F_PEND_REQUEST_HEADERS) == 0 {
		return C.PXG_E_UNSUPPORTED
	}
	lock.Lock()
	defer lock.Unlock()
	next++
	kinds[next] = name
	if mutant == "go-leaks-configuration" {
		kept = append(kept, bytes.Repeat([]byte{1}, 16<<10), copied)
	}
	out.config = C.uint64_t(next)
	out.subscribe = 1<<C.PXG_PHASE_REQUEST_HEADERS | 1<<C.PXG_PHASE_RESPONSE_HEADERS | 1<<C.PXG_PHASE_LOG
	if name == "go-async" {
		out.pend_phases = 1 << C.PXG_PHASE_REQUEST_HEADERS
	}
	return C.PXG_OK
}

//export goConfigDrop
func goConfigDrop(ctx, config C.uint64_t) {
	lock.Lock()
	defer lock.Unlock()
	delete(kinds, uint64(config))
}

func view(s C.pxg_str) []byte {
	if s.len == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(s.ptr)), int(s.len))
}

//export goEvent
func goEvent(ctx C.uint64_t, ev *C.pxg_event, out *C.pxg_result) {
	if mutant != "go-no-barrier" {
		defer func() {
			if r := recover(); r != nil {
				fail(out, r)
			}
		}()
	}
	lock.Lock()
	kind := kinds[uint64(ev.config)]
	lock.Unlock()
	if ev.phase != C.PXG_PHASE_REQUEST_HEADERS {
		out.action = C.PXG_ACT_CONTINUE
		return
	}
	fields := unsafe.Slice(ev.fields, int(ev.n_fields))
	switch kind {
	case "go-panics":
		panic("as the test asks for")
	case "go-async":
		token := uint64(ev.token)
		copied := ""
		if len(fields) > 0 {
			copied = string(view(fields[0].value))
		}
		go decide(uint64(ctx), token, copied)
		out.action = C.PXG_ACT_PENDING
		return
	}
	misuse(ev, fields)
	if mutant == "go-typed-pointers" {
		typed := unsafe.Slice(out.scratch_ops, int(out.scratch_ops_cap))
		// As long as it takes until the collector has come by, however busy the machine is.
		var before, now debug.GCStats
		debug.ReadGCStats(&before)
		for round := 0; now.NumGC < before.NumGC+2 && round < 1<<16; round++ {
			if round%200 == 199 {
				debug.ReadGCStats(&now)
			}
			for i := range typed {
				typed[i].key.ptr = nil
				if ev.n_fields > 0 {
					typed[i].key.ptr = fields[0].name.ptr
				}
			}
		}
		clear(unsafe.Slice((*rawOp)(unsafe.Pointer(out.scratch_ops)), int(out.scratch_ops_cap)))
	}
	ops := unsafe.Slice((*rawOp)(unsafe.Pointer(out.scratch_ops)), 2)
	ops[0] = rawOp{kind: C.PXG_OP_HEADER_SET, key: text("x-go"), val: text("1")}
	owned := C.CString("owned")
	release := uintptr(C.release_in_c())
	if mutant == "go-release-export" {
		release = uintptr(C.release_in_go())
	}
	ops[1] = rawOp{kind: C.PXG_OP_HEADER_ADD, key: text("x-owned"), release: release, ctx: uintptr(unsafe.Pointer(owned)),
		val: rawStr{ptr: uintptr(unsafe.Pointer(owned)), len: 5, flags: C.PXG_BUF_OWNED}}
	if mutant == "go-heap-pointer" {
		heap := make([]byte, 64)
		for i := range heap {
			heap[i] = 'h'
		}
		escape = heap
		escape = nil
		ops[0].val = rawStr{ptr: uintptr(unsafe.Pointer(&heap[0])), len: 64}
	}
	(*resultTail)(unsafe.Pointer(out)).ops = uintptr(unsafe.Pointer(out.scratch_ops))
	out.n_ops = 2
	out.action = C.PXG_ACT_CONTINUE
}

// The head of pxg_result up to `ops`, with the pointer as a number.
type resultTail struct {
	size, action, flags, reserved0 uint32
	user                           uint64
	ops                            uintptr
}

func fail(out *C.pxg_result, why any) {
	said := fmt.Sprintf("panic: %v", why)
	if mutant == "go-panic-without-prefix" {
		said = fmt.Sprintf("something went wrong: %v", why)
	}
	n := min(len(said), int(out.scratch_cap))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(out.scratch)), n), said)
	*(*rawStr)(unsafe.Pointer(&out.error)) = rawStr{ptr: uintptr(unsafe.Pointer(out.scratch)), len: uint32(n)}
	(*resultTail)(unsafe.Pointer(out)).ops = 0
	out.n_ops = 0
	out.action = C.PXG_ACT_ERROR
}

func decide(ctx, token uint64, copied string) {
	if mutant == "go-panic-in-goroutine" {
		panic("in a goroutine: " + copied)
	}
	C.call_complete(C.uint64_t(ctx), C.uint64_t(token))
}

func misuse(ev *C.pxg_event, fields []C.pxg_field) {
	switch mutant {
	case "go-late-read", "go-swallowed-fault":
		if len(fields) == 0 || fields[0].value.len == 0 {
			return
		}
		late := view(fields[0].value)
		go readLate(late)
	case "go-late-system-call":
		if len(fields) > 0 && fields[0].value.len > 0 {
			go writeLate(view(fields[0].value))
		}
	case "go-leaks-requests":
		kept := &stream{began: time.Now()}
		if len(fields) > 0 {
			kept.path = string(view(fields[0].value))
		}
		lock.Lock()
		streams[uint64(ev.stream)] = kept
		lock.Unlock()
	case "go-leaks-goroutines":
		go func() { select {} }()
	case "go-no-barrier":
		sink = byte(fields[0].name.len)
	case "go-handle-is-pointer":
		p := (*byte)(unsafe.Pointer(uintptr(ev.stream)))
		grow(2000)
		runtime.GC()
		runtime.KeepAlive(p)
	case "go-typed-pointers":
		typedPointers()
	}
}

func readLate(late []byte) {
	if mutant == "go-swallowed-fault" {
		debug.SetPanicOnFault(true)
		defer func() { _ = recover() }()
	}
	time.Sleep(5 * time.Millisecond)
	sink = late[0]
}

func writeLate(late []byte) {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	time.Sleep(5 * time.Millisecond)
	_, _ = w.Write(late)
	_ = w.Close()
	_ = r.Close()
}

//go:noinline
func grow(n int) byte {
	var pad [256]byte
	if n == 0 {
		return pad[n]
	}
	return grow(n-1) + pad[n%256]
}

func typedPointers() {
	collect.Do(func() {
		go func() {
			for {
				runtime.GC()
			}
		}()
	})
}
