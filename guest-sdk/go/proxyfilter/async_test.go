package proxyfilter

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// heapBatch is a batch in memory of its own, used again for each completion.
type heapBatch struct {
	res bridge.Result
	enc bridge.Encoder
	ops []bridge.Op
	buf []byte
}

func newHeapBatch() *heapBatch {
	b := &heapBatch{ops: make([]bridge.Op, 8), buf: make([]byte, 512)}
	b.enc.Init(nil)
	b.reset()
	return b
}

func (b *heapBatch) reset() {
	b.res = bridge.Result{}
	b.enc.Reset(b.ops, 1, b.buf, 1<<20)
}

func (b *heapBatch) Result() *bridge.Result { return &b.res }

func (b *heapBatch) Enc() *bridge.Encoder { return &b.enc }

// asyncHost takes completions, and counts jobs that were given back.
type asyncHost struct {
	logHost
	free      sync.Pool
	completed chan uint32 // actions
	freed     chan *bridge.Job
}

func (h *asyncHost) NewBatch(uint32) bridge.Batch {
	if b, ok := h.free.Get().(*heapBatch); ok {
		b.reset()
		return b
	}
	return newHeapBatch()
}

func (h *asyncHost) Complete(_ uint64, b bridge.Batch, _ bool) int32 {
	act := b.Result().Action
	h.free.Put(b)
	h.completed <- act
	return bridge.OK
}

func (h *asyncHost) Discard(b bridge.Batch) { h.free.Put(b) }

func (h *asyncHost) FreeJob(j *bridge.Job) { h.freed <- j }

// asyncRig is one configuration whose request headers go to fn.
func asyncRig(nonblocking bool, fn func(context.Context, *AsyncStream)) (*instance, *asyncHost, *bridge.Job) {
	h := &asyncHost{completed: make(chan uint32, 16), freed: make(chan *bridge.Job, 16)}
	h.level = bridge.LogOff
	in := newInstance(h)
	c := &config{inst: in, env: &Env{Filter: "f"}, h: &handlers{}}
	c.decl.Nonblocking = nonblocking
	c.h.async[PhaseRequestHeaders] = fn
	in.add(c)
	j := &bridge.Job{Ev: bridge.Event{Phase: bridge.PhaseRequestHeaders, Config: c.id, Token: 7, Stream: 8},
		Fields: []bridge.RawField{bridge.MakeRaw("host", "a"), bridge.MakeRaw("x-user", "joe")}}
	return in, h, j
}

func decideNow(_ context.Context, a *AsyncStream) {
	a.Set("x-bench", "0123456789abcdef")
	_ = a.Continue()
}

// What a job costs in Go, and nothing else of its way.
func BenchmarkJob(b *testing.B) {
	b.Run("inline", func(b *testing.B) {
		in, _, j := asyncRig(true, decideNow)
		batch, r := newHeapBatch(), &bridge.Runner{}
		b.ReportAllocs()
		for b.Loop() {
			if s, _ := in.RunJob(r, j, batch); s != bridge.JobDecided {
				b.Fatal("undecided")
			}
			batch.reset()
		}
	})
	b.Run("to be run", func(b *testing.B) {
		in, h, j := asyncRig(false, decideNow)
		b.ReportAllocs()
		for b.Loop() {
			_, r := in.RunJob(&bridge.Runner{}, j, nil)
			r.Run()
			<-h.completed
			<-h.freed
		}
	})
}

func TestJobAllocations(t *testing.T) {
	in, _, j := asyncRig(true, decideNow)
	batch, r := newHeapBatch(), &bridge.Runner{}
	n := testing.AllocsPerRun(1000, func() {
		for range asyncChunk {
			in.RunJob(r, j, batch)
			batch.reset()
		}
	})
	if n > 1 {
		t.Errorf("%d jobs that run inline allocate %v objects, want their AsyncStreams as one", asyncChunk, n)
	}
}

// After its function has returned, an AsyncStream reaches neither the job's memory
// nor the batch, which serve others by then.
func TestJobIsOutOfReachAfterwards(t *testing.T) {
	var kept *AsyncStream
	in, _, j := asyncRig(true, func(_ context.Context, a *AsyncStream) {
		kept = a
		if got := a.Get("x-user"); got != "joe" {
			t.Errorf("x-user is %q", got)
		}
		_ = a.Continue()
	})
	batch := newHeapBatch()
	if s, _ := in.RunJob(&bridge.Runner{}, j, batch); s != bridge.JobDecided {
		t.Fatalf("state %d", s)
	}
	batch.reset()
	kept.Set("x-late", "1")
	if err := kept.Continue(); !errors.Is(err, ErrDecided) {
		t.Errorf("a second decision: %v", err)
	}
	if kept.Get("x-user") != "" || len(kept.Headers()) != 0 || kept.job != nil {
		t.Error("the job can still be read")
	}
	if batch.enc.Len() != 0 {
		t.Error("the batch was written to after it was handed over")
	}
}

func TestInlineFailures(t *testing.T) {
	for name, fn := range map[string]func(context.Context, *AsyncStream){
		"panic":     func(context.Context, *AsyncStream) { panic("on purpose") },
		"undecided": func(_ context.Context, a *AsyncStream) { a.Set("x", "y") },
	} {
		in, _, j := asyncRig(true, fn)
		batch := newHeapBatch()
		if s, _ := in.RunJob(&bridge.Runner{}, j, batch); s != bridge.JobDecided || batch.res.Action != bridge.ActError || batch.enc.Len() != 0 {
			t.Errorf("%s: state %d, action %d, %d operations", name, s, batch.res.Action, batch.enc.Len())
		}
	}
}

// The context is a real one for whoever asks, and whenever they ask.
func TestAsyncContext(t *testing.T) {
	ask, asked, done := make(chan struct{}), make(chan struct{}), make(chan error, 3)
	var ctx context.Context
	in, h, j := asyncRig(false, func(c context.Context, _ *AsyncStream) {
		ctx = c
		if _, ok := c.Deadline(); ok || c.Err() != nil {
			t.Errorf("Err %v before anything happened", c.Err())
		}
		close(asked)
		<-ask
		child, cancel := context.WithTimeout(c, time.Hour)
		defer cancel()
		<-child.Done()
		done <- context.Cause(child)
		done <- context.Cause(c)
		done <- c.Err()
	})
	s, r := in.RunJob(&bridge.Runner{}, j, nil)
	if s != bridge.JobWaits {
		t.Fatalf("state %d", s)
	}
	go r.Run()
	<-asked
	in.OnCancel(j.Ev.Config, 1, j.Ev.Stream, j.Ev.Token, 0) // nobody has asked for Done yet
	close(ask)
	if a, b, c := <-done, <-done, <-done; a != ErrStreamGone || b != ErrStreamGone || c != context.Canceled {
		t.Errorf("causes %v and %v, error %v", a, b, c)
	}
	<-h.freed
	if <-ctx.Done(); ctx.Err() != context.Canceled {
		t.Errorf("Err %v after the function returned", ctx.Err())
	}
}

// Every waiting stream is found by its token, and only once, however many wait.
func TestWaitingStreams(t *testing.T) {
	in := newInstance(&logHost{level: bridge.LogOff})
	const n = 10000
	list := make([]*AsyncStream, n)
	for i := range list {
		list[i] = &AsyncStream{inst: in, token: uint64(i)*3 + 1}
		if i%7 == 0 { // cancelled before its job was taken
			in.OnCancel(0, 0, 0, list[i].token, 0)
		}
		if in.wait(list[i]) == (i%7 == 0) {
			t.Fatalf("stream %d", i)
		}
	}
	for i := 0; i < n; i += 2 {
		in.forget(list[i].token)
	}
	for i, a := range list {
		in.OnCancel(0, 0, 0, a.token, 0)
		if want := i%2 == 1 && i%7 != 0; (a.cause == causeGone) != want {
			t.Fatalf("stream %d: cause %v", i, a.cause)
		}
	}
	for i := range in.waiting {
		if s := &in.waiting[i]; s.n != 0 {
			t.Errorf("shard %d still has %d", i, s.n)
		}
	}
}
