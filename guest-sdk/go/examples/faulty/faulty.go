// Package faulty misbehaves on demand. It shows what the SDK and the proxy make
// of a broken filter: an error of its own stream, and nothing else.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// Name is the filter's name.
const Name = "faulty"

// Header is the request field that names the fault, unless the configuration does.
const Header = "x-fault"

// Faults lists what the filter can do wrong.
var Faults = []string{
	"panic",         // in the phase method
	"nil",           // a nil pointer is followed
	"zero-action",   // the method returns no action
	"error",         // the method returns an error
	"reset",         // the stream is cut
	"many",          // 200 header fields are set
	"block",         // the event loop is blocked for Millis
	"async-panic",   // in the asynchronous function
	"async-goexit",  // it ends its goroutine
	"async-forget",  // it returns without a decision
	"async-never",   // it never decides, until the stream dies
	"async-late",    // it decides after Millis
	"async-twice",   // it decides twice
	"async-nothing", // it decides at once
	"unreturned",    // Async is called, and its action not returned
}

// Config is the filter's configuration.
type Config struct {
	// Fault is done to each request; empty: what the request's field x-fault asks for.
	Fault string `json:"fault"`
	// Millis is how long block and async-late wait; 50 by default.
	Millis int `json:"millis"`
}

// Provision sets the defaults.
func (c *Config) Provision(*proxyfilter.Env) error {
	if c.Millis == 0 {
		c.Millis = 50
	}
	return nil
}

// Validate refuses an unknown fault.
func (c *Config) Validate() error {
	if c.Fault == "refuse" {
		return errors.New("refused, as asked for")
	}
	if c.Fault != "" && !slices.Contains(Faults, c.Fault) {
		return fmt.Errorf("fault %q is not known: it is one of %s", c.Fault, strings.Join(Faults, ", "))
	}
	return nil
}

type filter struct {
	cfg  *Config
	wait time.Duration
}

func (f *filter) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	fault := f.cfg.Fault
	if fault == "" {
		fault = h.Get(Header)
	}
	switch fault {
	case "":
		return proxyfilter.Continue
	case "panic":
		panic("faulty: panic, as asked for")
	case "nil":
		var c *Config
		h.Set("x-never", c.Fault)
	case "zero-action":
		return 0
	case "error":
		return s.Fail(errors.New("faulty: error, as asked for"))
	case "reset":
		return s.Reset()
	case "many":
		for i := range 200 {
			h.Set(fmt.Sprintf("x-many-%d", i), strings.Repeat("m", i))
		}
		return proxyfilter.Continue
	case "block":
		time.Sleep(f.wait)
		return proxyfilter.Continue
	case "unreturned":
		s.Async(func(context.Context, *proxyfilter.AsyncStream) {})
		return proxyfilter.Continue
	}
	return s.Async(func(ctx context.Context, a *proxyfilter.AsyncStream) { f.async(ctx, a, fault) })
}

func (f *filter) async(ctx context.Context, a *proxyfilter.AsyncStream, fault string) {
	a.Set("x-faulty", fault)
	switch fault {
	case "async-panic":
		panic("faulty: panic in a goroutine, as asked for")
	case "async-goexit":
		runtime.Goexit()
	case "async-forget":
	case "async-never":
		<-ctx.Done()
	case "async-late":
		t := time.NewTimer(f.wait)
		defer t.Stop()
		<-t.C
		_ = a.Continue()
	case "async-twice":
		var both sync.WaitGroup
		for range 2 {
			both.Add(1)
			go func() {
				defer both.Done()
				_ = a.Continue()
			}()
		}
		both.Wait()
	case "async-nothing":
		_ = a.Continue()
	default:
		_ = a.Fail(fmt.Errorf("faulty: unknown fault %q", fault))
	}
}

func init() {
	proxyfilter.Register(Name, func(c *Config, _ *proxyfilter.Env) (proxyfilter.Filter, error) {
		return &filter{cfg: c, wait: time.Duration(c.Millis) * time.Millisecond}, nil
	}, proxyfilter.MayPend(proxyfilter.PhaseRequestHeaders))
}
