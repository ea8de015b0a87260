package cabi

// #include "pxgo.h"
// #include <stdlib.h>
import "C"

import (
	"sync"
	"unsafe"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

const (
	batchOps   = 32
	batchBytes = 4096
)

// batch is a result that lives in C memory of its own: one block with the result,
// 32 operations and 4096 bytes, and more blocks if that is not enough. It is used
// again for other completions.
type batch struct {
	res    *bridge.Result
	enc    bridge.Encoder
	ops    []bridge.Op
	buf    []byte
	more   []unsafe.Pointer
	worker uint32
}

var batchPool struct {
	sync.Mutex
	free []*batch
}

func newBatch(worker uint32) *batch {
	batchPool.Lock()
	n := len(batchPool.free)
	var b *batch
	if n > 0 {
		b = batchPool.free[n-1]
		batchPool.free = batchPool.free[:n-1]
	}
	batchPool.Unlock()
	if b == nil {
		head := unsafe.Sizeof(bridge.Result{})
		p := C.calloc(1, C.size_t(head+batchOps*bridge.OpSize+batchBytes))
		b = &batch{res: (*bridge.Result)(p),
			ops: unsafe.Slice((*bridge.Op)(unsafe.Add(p, head)), batchOps),
			buf: unsafe.Slice((*byte)(unsafe.Add(p, head+batchOps*bridge.OpSize)), batchBytes)}
	}
	b.worker = worker
	b.reset()
	return b
}

// reset makes b ready for another completion.
func (b *batch) reset() {
	*b.res = bridge.Result{Size: uint32(unsafe.Sizeof(bridge.Result{}))}
	b.enc.Init(b)
	b.enc.Reset(b.ops, uintptr(unsafe.Pointer(unsafe.SliceData(b.ops))), b.buf, uintptr(unsafe.Pointer(unsafe.SliceData(b.buf))))
}

func (b *batch) Result() *bridge.Result { return b.res }

func (b *batch) Enc() *bridge.Encoder { return &b.enc }

func (b *batch) seal() *C.pxg_result {
	b.enc.Seal(b.res)
	return (*C.pxg_result)(unsafe.Pointer(b.res))
}

// clean is called after the host has copied what is in b; owned buffers are the host's.
func (b *batch) clean() {
	if len(b.more) > 0 {
		for _, p := range b.more {
			C.free(p)
		}
		b.more = b.more[:0]
	}
}

func (b *batch) recycle() {
	b.clean()
	freeBatches([]*batch{b})
}

const maxFreeBatches = 512

// freeBatches takes clean batches.
func freeBatches(list []*batch) {
	batchPool.Lock()
	n := min(len(list), maxFreeBatches-len(batchPool.free))
	batchPool.free = append(batchPool.free, list[:n]...)
	batchPool.Unlock()
	for _, b := range list[n:] {
		C.free(unsafe.Pointer(b.res))
	}
}

// ---- bridge.Memory

func (b *batch) block(n int) unsafe.Pointer {
	p := C.calloc(1, C.size_t(n))
	if p != nil {
		b.more = append(b.more, p)
	}
	return p
}

func (b *batch) More(n int) ([]byte, uintptr) {
	p := b.block(n)
	if p == nil {
		return nil, 0
	}
	return unsafe.Slice((*byte)(p), n), uintptr(p)
}

func (b *batch) MoreOps(n int) ([]bridge.Op, uintptr) {
	p := b.block(n * bridge.OpSize)
	if p == nil {
		return nil, 0
	}
	return unsafe.Slice((*bridge.Op)(p), n), uintptr(p)
}

func (b *batch) Owned(n int) ([]byte, uintptr, uintptr, uint64) { return owned(n) }

func (b *batch) FreeOwned(ctx uint64) { C.pxgo_release(C.uint64_t(ctx)) }
