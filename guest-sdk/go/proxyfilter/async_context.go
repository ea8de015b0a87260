package proxyfilter

import (
	"context"
	"time"
)

// cause is why a context is cancelled.
type cause uint8

const (
	causeNone cause = iota
	causeGone
	causeReturned
)

func (c cause) err() error {
	if c == causeGone {
		return ErrStreamGone
	}
	return errReturned
}

type cancellable struct {
	context.Context
	cancel context.CancelCauseFunc
}

// asyncContext is the context of an asynchronous function. Most functions never
// ask for what a real one is made of.
type asyncContext AsyncStream

func (c *asyncContext) real() *cancellable {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		if c.cause != causeNone {
			cancel(c.cause.err())
		}
		c.ctx = &cancellable{ctx, cancel}
	}
	return c.ctx
}

// Deadline implements context.Context: the host's is not known.
func (c *asyncContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (c *asyncContext) Done() <-chan struct{} { return c.real().Done() }

// Value implements context.Context. The real one answers to what context.Cause asks.
func (c *asyncContext) Value(key any) any { return c.real().Value(key) }

// Err implements context.Context.
func (c *asyncContext) Err() error {
	c.mu.Lock()
	ctx, cause := c.ctx, c.cause
	c.mu.Unlock()
	switch {
	case ctx != nil:
		return ctx.Err()
	case cause != causeNone:
		return context.Canceled
	}
	return nil
}

func (c *asyncContext) String() string { return "proxyfilter.AsyncStream context" }

// context is what the function gets. One that never blocks has no use for a
// context that can be cancelled: if its stream is dead, its decision is answered with STALE.
func (a *AsyncStream) context() context.Context {
	if a.waits {
		return (*asyncContext)(a)
	}
	return context.Background()
}

// gone cancels the context because the stream is gone, unless it is cancelled.
func (a *AsyncStream) gone() {
	a.mu.Lock()
	if a.cause == causeNone {
		a.cause = causeGone
	}
	ctx := a.ctx
	a.mu.Unlock()
	if ctx != nil {
		ctx.cancel(ErrStreamGone)
	}
}
