package proxyfilter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Ref names a stream. It may be kept for ever and used from any goroutine: when
// the stream is gone its methods answer [ErrStreamGone].
type Ref struct {
	inst   *instance
	stream uint64
	worker uint32
}

// Wake has the filter's OnWake called on the stream's event loop.
func (r Ref) Wake(arg uint64) error {
	if !r.inst.host.CanApply() {
		return errors.New("proxyfilter: this host can't wake streams (feature APPLY)")
	}
	return status(r.inst.host.Wake(r.stream, arg))
}

// Changes is a batch for [Ref.Apply].
type Changes struct {
	e *bridge.Encoder
	r *bridge.Result
}

// SetMetadata is [Stream.SetMetadata].
func (c Changes) SetMetadata(namespace, key, value string) { c.e.Metadata(namespace, key, value) }

// Record is [Stream.Record].
func (c Changes) Record(m Metric, value int64) { m.encode(c.e, value) }

// RouteToCluster is [Stream.RouteToCluster].
func (c Changes) RouteToCluster(name string) { c.e.Route("cluster", name) }

// Reply answers the request here, if that is still possible when it is applied;
// otherwise the stream is cut.
func (c Changes) Reply(p Reply) {
	c.e.SetReply(p.Status, p.flags(), p.GRPCStatus, p.Header, p.Trailers, p.Body, p.Details)
	c.r.Action = uint32(actReply)
}

// Reset cuts the stream in both directions.
func (c Changes) Reset() { c.r.Action = uint32(actReset) }

// Apply changes a stream from outside of its events, also while it waits: a
// watchdog may answer a request that hangs upstream.
func (r Ref) Apply(f func(c Changes)) error {
	if !r.inst.host.CanApply() {
		return errors.New("proxyfilter: this host can't change streams from outside (feature APPLY)")
	}
	b := r.inst.host.NewBatch(r.worker)
	res := b.Result()
	res.Action = uint32(Continue)
	f(Changes{b.Enc(), res})
	if err := b.Enc().Err(); err != nil {
		r.inst.host.Discard(b)
		return err
	}
	return status(r.inst.host.Apply(r.stream, b))
}

func status(code int32) error {
	switch {
	case code >= bridge.OK:
		return nil
	case code == bridge.ErrStale:
		return ErrStreamGone
	}
	return fmt.Errorf("proxyfilter: the host answered %s", statusName(code))
}

// liveStreams are the streams that something waits on beyond their tokens.
type liveStreams struct {
	mu sync.Mutex
	m  map[uint64]*liveStream
}

type liveStream struct {
	writable chan struct{} // holds one element when the host may take more
	gone     chan struct{}
	once     sync.Once
	cancel   func() // for ErrStreamGone
}

func (l *liveStreams) add(stream uint64, s *liveStream) {
	l.mu.Lock()
	l.m[stream] = s
	l.mu.Unlock()
}

func (l *liveStreams) remove(stream uint64) *liveStream {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.m[stream]
	delete(l.m, stream)
	return s
}

func (l *liveStreams) writable(stream uint64) {
	l.mu.Lock()
	s := l.m[stream]
	l.mu.Unlock()
	if s != nil {
		select {
		case s.writable <- struct{}{}:
		default:
		}
	}
}

func (l *liveStreams) end(stream uint64) {
	if s := l.remove(stream); s != nil {
		s.die()
	}
}

func (s *liveStream) die() {
	s.once.Do(func() {
		close(s.gone)
		s.cancel()
	})
}

// ReplyWriter sends the body of a reply piece by piece. Write waits while the
// client is slower. It may be used after the asynchronous function has returned.
type ReplyWriter struct {
	inst   *instance
	stream uint64
	worker uint32
	live   *liveStream
	ctx    context.Context

	mu     sync.Mutex
	full   bool
	closed bool
}

var _ io.WriteCloser = (*ReplyWriter)(nil)

// StreamReply answers the request here and leaves the body open: what is written
// to the writer follows, until Close. The configuration must declare
// StreamedReplies. The function's context stays alive until it returns, and is
// cancelled when the stream dies.
func (a *AsyncStream) StreamReply(p Reply) (*ReplyWriter, error) {
	text := p.fault()
	if !a.cfg.decl.StreamedReplies {
		text = "StreamReply without Declaration.StreamedReplies"
	}
	if text != "" {
		return nil, errors.Join(errors.New("proxyfilter: "+text), a.fail(text))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	live := &liveStream{writable: make(chan struct{}, 1), gone: make(chan struct{}),
		cancel: func() { cancel(ErrStreamGone); a.gone() }}
	w := &ReplyWriter{inst: a.inst, stream: a.stream, worker: a.worker, live: live, ctx: ctx}
	// Entered first: the stream may end while Complete runs.
	a.inst.live.add(a.stream, live)
	a.inst.host.AddInterest(1)
	err := a.conclude(actReply, func(_ *bridge.Result, e *bridge.Encoder) {
		e.Drop()
		e.SetReply(p.Status, p.flags()|bridge.ReplyOpen, p.GRPCStatus, p.Header, p.Trailers, p.Body, p.Details)
	}, true)
	if err != nil {
		w.finish()
		return nil, err
	}
	return w, nil
}

// Context is cancelled, with the cause, when the stream dies.
func (w *ReplyWriter) Context() context.Context { return w.ctx }

func (w *ReplyWriter) finish() {
	if w.closed {
		return
	}
	w.closed = true
	w.inst.live.remove(w.stream)
	w.inst.host.AddInterest(-1)
}

// Write sends p, waiting first while the host has enough.
func (w *ReplyWriter) Write(p []byte) (int, error) { return w.write(p, 0, 0) }

// WriteFlush is Write, and has the host send everything at once.
func (w *ReplyWriter) WriteFlush(p []byte) (int, error) { return w.write(p, 0, bridge.ResFlush) }

// Close ends the reply.
func (w *ReplyWriter) Close() error {
	_, err := w.write(nil, bridge.OpFlagEnd, 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finish()
	if errors.Is(err, errClosed) {
		return nil
	}
	return err
}

var errClosed = errors.New("proxyfilter: write after Close")

func (w *ReplyWriter) write(p []byte, flags uint16, resFlags uint32) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, errClosed
	}
	for {
		if w.full {
			select {
			case <-w.live.writable:
				w.full = false
			case <-w.live.gone:
			}
		}
		select {
		case <-w.live.gone:
			w.finish()
			return 0, ErrStreamGone
		default:
		}
		b := w.inst.host.NewBatch(w.worker)
		r := b.Result()
		r.Action, r.Flags = uint32(Continue), resFlags
		b.Enc().Data(bridge.OpBodyWrite, flags, p)
		if err := b.Enc().Err(); err != nil {
			w.inst.host.Discard(b)
			return 0, err
		}
		switch code := w.inst.host.Apply(w.stream, b); code {
		case bridge.OK:
			return len(p), nil
		case bridge.Full:
			w.full = true
			return len(p), nil
		case bridge.ErrLimit:
			// Not taken: something else wrote to this stream's reply up to the watermark.
			w.full = true
		case bridge.ErrStale:
			w.finish()
			w.live.die()
			return 0, ErrStreamGone
		default:
			if err := status(code); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
}
