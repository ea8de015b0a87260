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

	// Of the consumer's goroutine alone: what it has run itself, and batches for it.
	ran    gathered
	free   []*batch
	runner bridge.Runner

	// While the goroutines of a batch of jobs run, their completions are collected,
	// and then go to the host in one call.
	collecting atomic.Bool // changed under doneMu
	doneMu     sync.Mutex
	began      time.Time
	done       *gathered
	idle       []*gathered
}

type goJob struct {
	r           bridge.Runnable
	nonblocking bool
}

// queue is jobs that may block. One goroutine runs them one after the other, until
// one blocks: then another goroutine goes on with the rest.
type queue struct {
	list []bridge.Runnable
	next atomic.Int64
}

func (q *queue) run() {
	for {
		i := q.next.Add(1) - 1
		if i >= int64(len(q.list)) {
			return
		}
		r := q.list[i]
		q.list[i] = nil
		r.Run()
	}
}

// start returns when all jobs have begun, or have a goroutine each to begin on. The
// goroutine that yields here is on again when the one it started waits for
// something, is done, or has used up its time, or when there is a processor for both.
func (q *queue) start() {
	for range q.list {
		go q.run()
		runtime.Gosched()
		if q.next.Load() >= int64(len(q.list)) {
			return
		}
	}
}

// gathered is completions for one call.
type gathered struct {
	n       int
	calls   []C.pxgo_done // maxCollect, in C memory
	batches [maxCollect]*batch
}

const (
	maxCollect = 128
	// Whoever computes can keep the consumer from its turn: what has been gathered
	// for this long goes to the host.
	maxHold = 200 * time.Microsecond
)

func (g *gathered) add(token uint64, b *batch) {
	if g.calls == nil {
		g.calls = unsafe.Slice((*C.pxgo_done)(C.calloc(maxCollect, C.sizeof_pxgo_done)), maxCollect)
	}
	d := &g.calls[g.n]
	d.token, d.code = C.uint64_t(token), 0
	*(*uintptr)(unsafe.Pointer(&d.result)) = uintptr(unsafe.Pointer(b.seal()))
	g.batches[g.n] = b
	g.n++
}

// ripe says whether g has waited enough. It looks at the clock when there is twice
// as much as at the last time: so nothing waits much longer than twice the limit
// if the jobs are alike, and short ones do not pay for it.
func (g *gathered) ripe(began time.Time) bool {
	return g.n == maxCollect || g.n&(g.n-1) == 0 && time.Since(began) >= maxHold
}

// hand gives what was gathered to the host. The batches can then be used again.
func (c *consumer) hand(g *gathered) []*batch {
	n := g.n
	if n == 0 {
		return nil
	}
	g.n = 0
	C.pxgo_complete_many(c.host.c, unsafe.SliceData(g.calls), C.uint64_t(n))
	for i := range g.calls[:n] {
		d := &g.calls[i]
		// A positive status is a success, also one that this version does not know.
		if d.code < 0 && d.code != C.PXG_E_STALE {
			c.refused(uint64(d.token))
		}
		g.batches[i].clean()
	}
	return g.batches[:n]
}

// collect takes a completion if its batch is being collected just now.
func (c *consumer) collect(token uint64, b *batch) bool {
	if !c.collecting.Load() {
		return false
	}
	c.doneMu.Lock()
	g := c.done
	if g == nil {
		c.doneMu.Unlock()
		return false
	}
	g.add(token, b)
	if !g.ripe(c.began) {
		c.doneMu.Unlock()
		return true
	}
	if g.n == maxCollect {
		c.done = c.fresh()
	} else {
		c.endCollect()
	}
	c.doneMu.Unlock()
	c.handCollected(g)
	return true
}

func (c *consumer) beginCollect() {
	c.doneMu.Lock()
	c.began = time.Now()
	c.done = c.fresh()
	c.collecting.Store(true)
	c.doneMu.Unlock()
}

// fresh needs doneMu, as endCollect does.
func (c *consumer) fresh() (g *gathered) {
	if n := len(c.idle); n > 0 {
		g, c.idle = c.idle[n-1], c.idle[:n-1]
		return g
	}
	return &gathered{}
}

func (c *consumer) endCollect() {
	c.done = nil
	c.collecting.Store(false)
}

// flush hands over what was collected.
func (c *consumer) flush() {
	c.doneMu.Lock()
	g := c.done
	c.endCollect()
	c.doneMu.Unlock()
	if g != nil {
		c.handCollected(g)
	}
}

func (c *consumer) handCollected(g *gathered) {
	freeBatches(c.hand(g))
	c.doneMu.Lock()
	c.idle = append(c.idle, g)
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

// loop waits in C, not in Go's scheduler, so that a push needs no processor of Go.
func (c *consumer) loop() {
	for {
		list := (*bridge.Job)(unsafe.Pointer(C.pxgo_wait(c.ring)))
		goJobs := c.takeGoJobs()
		// A single goroutine gains nothing by waiting for others.
		collecting := len(goJobs) > 1 || list != nil && (list.Next != nil || len(goJobs) > 0)
		q := c.run(list, goJobs, collecting)
		switch {
		case q == nil:
		case collecting:
			c.beginCollect()
			q.start()
			c.flush()
		default:
			q.start()
		}
	}
}

// run runs the jobs that never block, and answers the others.
func (c *consumer) run(j *bridge.Job, goJobs []goJob, collecting bool) (q *queue) {
	later := func(r bridge.Runnable) {
		if q == nil {
			q = &queue{list: make([]bridge.Runnable, 0, 16)}
		}
		q.list = append(q.list, r)
	}
	var began time.Time
	if collecting {
		began = time.Now()
	}
	for j != nil {
		next, token, b := j.Next, j.Ev.Token, c.spare()
		state, r := c.host.inst.RunJob(&c.runner, j, b)
		if state == bridge.JobWaits {
			later(r)
			j = next
			continue
		}
		c.host.FreeJob(j)
		j = next
		if state != bridge.JobDecided {
			b.enc.Drop()
			b.reset()
			continue
		}
		c.free = c.free[:len(c.free)-1]
		c.ran.add(token, b)
		if next != nil && c.ran.ripe(began) {
			c.handRan()
			began = time.Now()
		}
	}
	c.handRan()
	for _, j := range goJobs {
		if j.nonblocking {
			j.r.Run()
		} else {
			later(j.r)
		}
	}
	return q
}

func (c *consumer) handRan() {
	for _, b := range c.hand(&c.ran) {
		b.reset()
		c.free = append(c.free, b)
	}
}

// spare is a fresh batch, the last one in c.free.
func (c *consumer) spare() *batch {
	if n := len(c.free); n > 0 {
		return c.free[n-1]
	}
	b := newBatch(c.worker)
	c.free = append(c.free, b)
	return b
}

func (c *consumer) takeGoJobs() []goJob {
	if atomic.LoadUint32((*uint32)(unsafe.Pointer(&c.ring.go_jobs))) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.jobs
	c.jobs = nil
	atomic.AddUint32((*uint32)(unsafe.Pointer(&c.ring.go_jobs)), -uint32(len(l)))
	return l
}

// FreeJob gives a job back to its ring.
func (h *host) FreeJob(job *bridge.Job) {
	j := (*C.pxgo_job)(unsafe.Pointer(job))
	if j.home == nil {
		C.pxgo_job_free(j)
		return
	}
	spent, next := (*uintptr)(unsafe.Pointer(&j.home.spent)), (*uintptr)(unsafe.Pointer(&j.next))
	for {
		head := atomic.LoadUintptr(spent)
		*next = head
		if atomic.CompareAndSwapUintptr(spent, head, uintptr(unsafe.Pointer(j))) {
			return
		}
	}
}

// Spawn is called inside an event. The kick follows when the event has returned,
// or at the end of the host's batch.
func (h *host) Spawn(worker uint32, nonblocking bool, r bridge.Runnable) {
	if worker >= C.PXGO_MAX_WORKERS || atomic.LoadUint32((*uint32)(unsafe.Pointer(&h.c.ring[worker].running))) == 0 {
		go r.Run()
		return
	}
	c := &h.consumers[worker]
	c.mu.Lock()
	c.jobs = append(c.jobs, goJob{r, nonblocking})
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
