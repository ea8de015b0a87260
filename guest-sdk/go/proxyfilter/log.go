package proxyfilter

import (
	"bytes"
	"context"
	"log/slog"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// logHandler sends records to the host. Below the host's level nothing is formatted.
type logHandler struct {
	host bridge.Host
	// keepTime is for the test: the host's log has a time of its own.
	keepTime bool
	// with replays the handler's attributes and groups on a handler that formats.
	with []func(slog.Handler) slog.Handler
}

func newLogger(h bridge.Host, filter, name string) *slog.Logger {
	l := slog.New(&logHandler{host: h}).With("filter", filter)
	if name != "" && name != filter {
		l = l.With("name", name)
	}
	return l
}

func hostLevel(l slog.Level) uint32 {
	switch {
	case l < slog.LevelDebug:
		return bridge.LogTrace
	case l < slog.LevelInfo:
		return bridge.LogDebug
	case l < slog.LevelWarn:
		return bridge.LogInfo
	case l < slog.LevelError:
		return bridge.LogWarn
	}
	return bridge.LogError
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool {
	return hostLevel(l) >= h.host.LogLevel()
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	var b bytes.Buffer
	var t slog.Handler = slog.NewTextHandler(&b, &slog.HandlerOptions{
		Level: slog.Level(-128),
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey && !h.keepTime || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	for _, w := range h.with {
		t = w(t)
	}
	if err := t.Handle(ctx, r); err != nil {
		return err
	}
	h.host.Log(hostLevel(r.Level), string(bytes.TrimRight(b.Bytes(), "\n")))
	return nil
}

func (h *logHandler) WithAttrs(a []slog.Attr) slog.Handler {
	if len(a) == 0 {
		return h
	}
	return h.plus(func(t slog.Handler) slog.Handler { return t.WithAttrs(a) })
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.plus(func(t slog.Handler) slog.Handler { return t.WithGroup(name) })
}

func (h *logHandler) plus(f func(slog.Handler) slog.Handler) slog.Handler {
	return &logHandler{host: h.host, keepTime: h.keepTime, with: append(h.with[:len(h.with):len(h.with)], f)}
}
