// The probe's twin in Go, on the Go SDK: it proves a Go runtime in the host under test. The request field x-pxg-go is its
// script, steps separated by semicolons:
//
//	set NAME VALUE | add NAME VALUE | delete NAME | reply STATUS BODY | error TEXT | panic | gc | pend MS
//
// Behind `pend` the steps run on a goroutine, after MS milliseconds; `never` there waits for the end of the stream. The
// field x-pxg-go-body with the value upper has the whole body turned into upper case, on a goroutine as well.
package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	_ "github.com/proxy-golang/proxy_golang/guest-sdk/go/guest"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

type probe struct{}

// gone counts streams whose context ended while a goroutine worked for them.
var gone atomic.Int64

func (*probe) Declare(d *proxyfilter.Declaration) {
	d.Pends = append(d.Pends, proxyfilter.PhaseRequestHeaders, proxyfilter.PhaseResponseHeaders)
}

// message is what steps change: the headers of an event, or what a goroutine hands over.
type message interface {
	Set(name, value string)
	Add(name, value string)
	Del(name string)
}

// steps runs the script on m; what ends it is left for the caller, as words.
func steps(script []string, m message) (rest []string, verdict []string) {
	for i, step := range script {
		w := strings.SplitN(strings.TrimSpace(step), " ", 3)
		switch {
		case w[0] == "set" && len(w) == 3:
			m.Set(w[1], w[2])
		case w[0] == "add" && len(w) == 3:
			m.Add(w[1], w[2])
		case w[0] == "delete" && len(w) > 1:
			m.Del(w[1])
		case w[0] == "gc":
			runtime.GC()
		case w[0] == "panic":
			panic("as the script says")
		case w[0] == "":
		default:
			return script[i+1:], w
		}
	}
	return nil, nil
}

func reply(w []string) proxyfilter.Reply {
	r := proxyfilter.Reply{Status: 500}
	if len(w) > 1 {
		r.Status, _ = strconv.Atoi(w[1])
	}
	if len(w) > 2 {
		r.Body = []byte(w[2])
	}
	return r
}

func (*probe) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	script := strings.Split(h.Get("x-pxg-go"), ";")
	// An event that was changed cannot be left to a goroutine: `pend` comes first.
	if !strings.HasPrefix(script[0], "pend") {
		h.Set("x-go-gone", strconv.FormatInt(gone.Load(), 10))
		h.Set("x-go-process", strconv.Itoa(os.Getpid()))
	}
	rest, w := steps(script, h)
	if w == nil {
		return proxyfilter.Continue
	}
	switch w[0] {
	case "reply":
		return s.Reply(reply(w))
	case "error":
		return s.Fail(errors.New("as the script says"))
	case "pend":
		wait, _ := strconv.Atoi(strings.Join(w[1:], ""))
		return s.Async(func(ctx context.Context, a *proxyfilter.AsyncStream) {
			select {
			case <-time.After(time.Duration(wait) * time.Millisecond):
			case <-ctx.Done():
				gone.Add(1)
				return
			}
			_, w := steps(rest, a)
			switch {
			case w == nil:
				_ = a.Continue()
			case w[0] == "reply":
				_ = a.Reply(reply(w))
			case w[0] == "never":
				<-ctx.Done()
				gone.Add(1)
			default:
				_ = a.Fail(errors.New("no such step: " + w[0]))
			}
		})
	}
	return s.Fail(errors.New("no such step: " + w[0]))
}

func (*probe) OnRequestBodyAsync(_ context.Context, a *proxyfilter.AsyncStream) {
	if a.Get("x-pxg-go-body") == "upper" {
		a.ReplaceBody(bytes.ToUpper(a.Body()))
	}
	_ = a.Continue()
}

func (*probe) OnResponseHeaders(_ proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	h.Set("x-go-response", runtime.Version())
	return proxyfilter.Continue
}

func (*probe) OnLog(proxyfilter.Stream, proxyfilter.End) {}

func init() {
	proxyfilter.Register("go-probe", func(f *probe, _ *proxyfilter.Env) (proxyfilter.Filter, error) { return f, nil })
}

func main() {}
