package proxyfilter

import (
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// logHost is a host that only logs.
type logHost struct {
	bridge.Host
	mu    sync.Mutex
	level uint32
	lines []string
}

func (h *logHost) LogLevel() uint32 { return h.level }

func (h *logHost) Log(level uint32, msg string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf("level=%d %s", level, msg))
}

func TestSlogHandler(t *testing.T) {
	var h *logHost
	slogtest.Run(t, func(*testing.T) slog.Handler {
		h = &logHost{}
		return &logHandler{host: h, keepTime: true}
	}, func(t *testing.T) map[string]any {
		if len(h.lines) != 1 {
			t.Fatalf("lines: %q", h.lines)
		}
		return parse(h.lines[0])
	})
}

// parse reads what slog.TextHandler writes, for values without spaces, into nested maps.
func parse(line string) map[string]any {
	top := map[string]any{}
	for _, kv := range strings.Fields(line) {
		key, value, _ := strings.Cut(kv, "=")
		m := top
		for {
			group, rest, nested := strings.Cut(key, ".")
			if !nested {
				break
			}
			if m[group] == nil {
				m[group] = map[string]any{}
			}
			m, key = m[group].(map[string]any), rest
		}
		m[key] = value
	}
	return top
}

type counted struct{ n *int }

func (c counted) LogValue() slog.Value {
	*c.n++
	return slog.StringValue("formatted")
}

func TestNothingIsFormattedBelowTheHostsLevel(t *testing.T) {
	h := &logHost{level: bridge.LogWarn}
	l := newLogger(h, "f", "name")
	n := 0
	l.Info("no", "v", counted{&n})
	if n != 0 || len(h.lines) != 0 {
		t.Errorf("formatted %d times, lines %q", n, h.lines)
	}
	h.level = bridge.LogInfo // the level follows the host at once
	l.Info("yes", "v", counted{&n})
	if n != 1 || len(h.lines) != 1 || !strings.Contains(h.lines[0], "level=2 msg=yes filter=f name=name v=formatted") {
		t.Errorf("formatted %d times, lines %q", n, h.lines)
	}
	h.level = bridge.LogOff
	l.Error("no")
	if len(h.lines) != 1 {
		t.Errorf("logged at level off: %q", h.lines)
	}
}

func TestSlab(t *testing.T) {
	var s slab
	o := &object{}
	a, b := s.put(o), s.put(&object{})
	if a < slabBase || b < slabBase || a == b {
		t.Fatalf("slots %d and %d", a, b)
	}
	if s.get(a) != o || s.take(a) != o {
		t.Error("the object is not at its slot")
	}
	if s.get(a) != nil || s.take(a) != nil {
		t.Error("a slot outlives its stream")
	}
	if c := s.put(o); uint32(c) != uint32(a) || c == a {
		t.Errorf("slot %#x after %#x: the place is used again, with another generation", c, a)
	}
	for _, wrong := range []uint64{0, 1, 2 + 100, 1 << 32, ^uint64(0)} {
		if s.get(wrong) != nil {
			t.Errorf("slot %#x finds something", wrong)
		}
	}
}

func TestDiffOfWholeMessages(t *testing.T) {
	call := &bridge.Call{Ev: &bridge.Event{}, Res: &bridge.Result{}}
	ops := make([]bridge.Op, 32)
	buf := make([]byte, 4096)
	c := &callState{Call: call, cfg: &config{}}
	before := HeaderMap{"same": {"1", "2"}, "gone": {"x"}, "other": {"a", "b"}}
	after := HeaderMap{"same": {"1", "2"}, "other": {"b"}, "new": {"n", "m"}}
	call.Init(nil)
	call.Enc.Reset(ops, 1, buf, 1<<20)
	diff(c.headers(), before, after)
	var got []string
	for _, o := range call.Enc.List() {
		text := func(p uintptr, n uint32) string {
			if n == 0 {
				return ""
			}
			return string(buf[p-1<<20:][:n])
		}
		got = append(got, fmt.Sprintf("%d %s %s", o.Kind, text(o.KeyPtr, o.KeyLen), text(o.ValPtr, o.ValLen)))
	}
	want := []string{"3 gone ", "1 new n", "2 new m", "1 other b"}
	if !slices.Equal(got, want) {
		t.Errorf("operations %q, want %q", got, want)
	}
	if !maps.EqualFunc(headerMap([]bridge.RawField{bridge.MakeRaw("a", "1"), bridge.MakeRaw("a", "2")}), HeaderMap{"a": {"1", "2"}}, slices.Equal) {
		t.Error("headerMap loses values")
	}
}

func TestEnvGo(t *testing.T) {
	h := &logHost{}
	e := &Env{Filter: "f", inst: newInstance(h)}
	for range 2 {
		done := make(chan struct{})
		e.Go(func() {
			defer close(done)
			panic("on purpose")
		})
		<-done
	}
	for {
		h.mu.Lock()
		n := len(h.lines)
		h.mu.Unlock()
		if n == 2 {
			break
		}
		runtime.Gosched()
	}
	if !strings.Contains(h.lines[0], "on purpose") || !strings.Contains(h.lines[0], "TestEnvGo") || strings.Contains(h.lines[0], "\n") {
		t.Errorf("lines %q", h.lines)
	}
}

func TestDisableRecipe(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an unknown step is taken")
		}
		bridge.Recipe.Off = nil
	}()
	DisableRecipe("sysmon", "ring")
	if !bridge.Recipe.Off["ring"] || bridge.Recipe.Off["batch"] {
		t.Errorf("off: %v", bridge.Recipe.Off)
	}
	DisableRecipe("sisman")
}
