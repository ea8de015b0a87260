package cabi

// #cgo noescape pxgo_wait
// #cgo nocallback pxgo_wait
// #cgo noescape pxgo_job_free
// #cgo nocallback pxgo_job_free
// #cgo noescape pxgo_scratch_more
// #cgo nocallback pxgo_scratch_more
// #cgo noescape pxgo_release
// #cgo nocallback pxgo_release
// #include "pxgo.h"
// #include <stdlib.h>
import "C"

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// consumer serves one worker's ring.
type consumer struct {
	host   *host
	worker uint32
	ring   *C.pxgo_ring

	mu   sync.Mutex
	jobs []goJob // pushed by the Go side

	// While a batch of jobs is started and run, completions are collected, and
	// then go to the host in one call.
	doneMu     sync.Mutex
	collecting bool
	began      time.Time
	done       []pending
	free       []*C.pxgo_job

	callMu sync.Mutex
	calls  []C.pxgo_done // maxCollect, in C memory
}

type goJob struct {
	f           func()
	nonblocking bool
}

type pending struct {
	token uint64
	b     *batch
}

const (
	maxCollect = 128
	// A goroutine that computes can keep the consumer from its turn: what has been
	// collected for this long goes with the next completion.
	maxHold = 200 * time.Microsecond
)

// collect takes a completion if its batch is being collected just now.
func (c *consumer) collect(token uint64, b *batch) bool {
	c.doneMu.Lock()
	if !c.collecting {
		c.doneMu.Unlock()
		return false
	}
	c.done = append(c.done, pending{token, b})
	if len(c.done) < maxCollect && time.Since(c.began) < maxHold {
		c.doneMu.Unlock()
		return true
	}
	done, free := c.take()
	c.doneMu.Unlock()
	c.hand(done, free)
	return true
}

func (c *consumer) release(j *C.pxgo_job) {
	c.doneMu.Lock()
	if c.collecting {
		c.free = append(c.free, j)
		c.doneMu.Unlock()
		return
	}
	c.doneMu.Unlock()
	C.pxgo_job_free(j)
}

func (c *consumer) collectNow() {
	c.doneMu.Lock()
	c.collecting, c.began = true, time.Now()
	c.doneMu.Unlock()
}

// take ends the collecting; the caller holds doneMu.
func (c *consumer) take() ([]pending, []*C.pxgo_job) {
	done, free := c.done, c.free
	c.collecting, c.done, c.free = false, nil, nil
	return done, free
}

// flush hands over what was collected.
func (c *consumer) flush() {
	c.doneMu.Lock()
	done, free := c.take()
	c.doneMu.Unlock()
	c.hand(done, free)
}

func (c *consumer) hand(done []pending, free []*C.pxgo_job) {
	if n := len(done); n > 0 {
		var bad []pending
		c.callMu.Lock()
		calls := c.callArray()
		for i, d := range done {
			calls[i].token, calls[i].code = C.uint64_t(d.token), 0
			*(*uintptr)(unsafe.Pointer(&calls[i].result)) = uintptr(unsafe.Pointer(d.b.seal()))
		}
		C.pxgo_complete_many(c.host.c, unsafe.SliceData(calls), C.uint64_t(n))
		for i, d := range done {
			// A positive status is a success, also one that this version does not know.
			if code := calls[i].code; code < 0 && code != C.PXG_E_STALE {
				bad = append(bad, d)
			}
			d.b.recycle()
		}
		c.callMu.Unlock()
		for _, d := range bad {
			c.refused(d.token)
		}
	}
	for _, j := range free {
		C.pxgo_job_free(j)
	}
	clear(done)
	clear(free)
	c.doneMu.Lock()
	if c.done == nil {
		c.done = done[:0]
	}
	if c.free == nil {
		c.free = free[:0]
	}
	c.doneMu.Unlock()
}

// refused fails a stream whose batch the host did not understand.
func (c *consumer) refused(token uint64) {
	const text = "the host refused an asynchronous decision"
	c.host.Log(bridge.LogError, text)
	b := newBatch(c.worker)
	b.res.Action = bridge.ActError
	b.enc.SetError(text)
	C.pxgo_complete(c.host.c, C.uint64_t(token), b.seal())
	b.recycle()
}

func (c *consumer) callArray() []C.pxgo_done {
	if c.calls == nil {
		c.calls = unsafe.Slice((*C.pxgo_done)(C.calloc(maxCollect, C.sizeof_pxgo_done)), maxCollect)
	}
	return c.calls
}

// loop waits in C, not in Go's scheduler, so that a push needs no processor of Go.
func (c *consumer) loop() {
	var jobs []bridge.Job
	for {
		list := C.pxgo_wait(c.ring)
		for {
			jobs = jobs[:0]
			for ; list != nil && len(jobs) < maxCollect; list = list.next {
				jobs = append(jobs, c.job(list))
			}
			goJobs := c.takeGoJobs()
			// A single job gains nothing by waiting for others.
			if n := len(jobs) + len(goJobs); n > 1 {
				c.collectNow()
				if c.start(jobs, goJobs) {
					// Lets the goroutines run until they wait for something, or are
					// done. It also moves this one to another thread, so not for nothing.
					runtime.Gosched()
				}
				c.flush()
			} else if n == 1 {
				c.start(jobs, goJobs)
			}
			clear(jobs)
			if list == nil {
				break
			}
		}
	}
}

// start says whether goroutines are under way.
func (c *consumer) start(jobs []bridge.Job, goJobs []goJob) (started bool) {
	if len(jobs) > 0 {
		started = c.host.inst.RunJobs(c.worker, jobs)
	}
	for _, j := range goJobs {
		if j.nonblocking {
			j.f()
		} else {
			go j.f()
			started = true
		}
	}
	return started
}

func (c *consumer) takeGoJobs() []goJob {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.jobs
	c.jobs = nil
	atomic.AddUint32((*uint32)(unsafe.Pointer(&c.ring.go_jobs)), -uint32(len(l)))
	return l
}

func (c *consumer) job(j *C.pxgo_job) bridge.Job {
	ev := bridge.Event{Phase: uint32(j.phase), Flags: uint32(j.flags), Worker: uint32(j.worker), Config: uint64(j.config), User: uint64(j.user),
		Stream: uint64(j.stream), Token: uint64(j.token), BodyOffset: uint64(j.body_offset)}
	var attrs []bridge.Attr
	if n := int(j.n_attrs); n > 0 {
		attrs = appendAttrs(nil, j.attrs, n)
	}
	return bridge.Job{Ev: ev, Fields: fieldsView(j.fields, j.n_fields), Trailers: fieldsView(j.trailers, j.n_trailers), Attrs: attrs,
		Body: unsafe.Slice((*byte)(j.body), int(j.body_len)), Release: func() { c.release(j) }}
}

// Spawn is called inside an event. The kick follows when the event has returned,
// or at the end of the host's batch.
func (h *host) Spawn(worker uint32, nonblocking bool, f func()) {
	if worker >= C.PXGO_MAX_WORKERS || atomic.LoadUint32((*uint32)(unsafe.Pointer(&h.c.ring[worker].running))) == 0 {
		go f()
		return
	}
	c := &h.consumers[worker]
	c.mu.Lock()
	c.jobs = append(c.jobs, goJob{f, nonblocking})
	c.mu.Unlock()
	atomic.AddUint32((*uint32)(unsafe.Pointer(&c.ring.go_jobs)), 1)
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&c.ring.need_kick)), 1)
}

// NeedAsync starts the consumers of the workers known so far.
func (h *host) NeedAsync() {
	h.asyncMu.Lock()
	defer h.asyncMu.Unlock()
	h.async = true
	for w := range uint32(C.PXGO_MAX_WORKERS) {
		if w < h.workers || h.up[w] {
			h.start(w)
		}
	}
}

func (h *host) worker(worker uint32, up bool) {
	if worker >= C.PXGO_MAX_WORKERS {
		return
	}
	h.call(worker)
	h.asyncMu.Lock()
	defer h.asyncMu.Unlock()
	h.up[worker] = up
	if up && h.async {
		h.start(worker)
	}
}

// start needs asyncMu. A consumer stays for the life of the process.
func (h *host) start(worker uint32) {
	c := &h.consumers[worker]
	if c.host != nil || h.c.ring_on == 0 {
		return
	}
	c.host, c.worker, c.ring = h, worker, &h.c.ring[worker]
	go c.loop()
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&c.ring.running)), 1)
}
