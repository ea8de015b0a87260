package proxyfilter_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// banner answers one path itself and lets all else go on.
type banner struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

func (b *banner) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	if path, _ := h.GetView(":path"); path != b.Path {
		return proxyfilter.Continue
	}
	return s.Reply(proxyfilter.Reply{
		Status: 200,
		Header: []proxyfilter.Field{proxyfilter.F("content-type", "text/plain")},
		Body:   []byte(b.Text),
	})
}

func ExampleRegister() {
	proxyfilter.Register("banner", func(b *banner, env *proxyfilter.Env) (proxyfilter.Filter, error) {
		if b.Path == "" {
			return nil, fmt.Errorf("path is missing")
		}
		return b, nil
	})
	// Output:
}

// lookup decides without blocking the proxy.
type lookup struct {
	find func(ctx context.Context, user string) (group string, err error)
}

func (l *lookup) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	user := h.Get("x-user") // a copy: it outlives this call
	return s.Async(func(ctx context.Context, a *proxyfilter.AsyncStream) {
		group, err := l.find(ctx, user)
		if err != nil {
			a.Log().Warn("no group", slog.Any("error", err))
			_ = a.Reply(proxyfilter.Reply{Status: 503})
			return
		}
		a.Set("x-group", group)
		_ = a.Continue()
	})
}

func ExampleStream_Async() {
	proxyfilter.Register("lookup", func(*struct{}, *proxyfilter.Env) (proxyfilter.Filter, error) {
		return &lookup{find: func(context.Context, string) (string, error) { return "staff", nil }}, nil
	}, proxyfilter.MayPend(proxyfilter.PhaseRequestHeaders))
	// Output:
}
