package proxyfiltertest

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// Patience is how long a test waits for something that must happen. It only
// decides how soon a test that hangs fails.
var Patience = 30 * time.Second

// Option changes the host that a filter runs in.
type Option func(*Host)

// Without takes features away from the host.
func Without(features ...proxyfilter.Feature) Option {
	return func(h *Host) {
		for _, f := range features {
			h.features[int(f)>>6] &^= 1 << (int(f) & 63)
		}
	}
}

// WithoutAsync takes away all asynchronous decisions.
func WithoutAsync() Option {
	return func(h *Host) {
		for n := bridge.FPendRequestHeaders; n <= bridge.FPendResponseTrailers; n++ {
			h.features[0] &^= 1 << n
		}
	}
}

// Attributes are the values of attributes for the filter to ask for.
func Attributes(a map[string]string) Option {
	return func(h *Host) { h.attributes = a }
}

// Parent is the host whose configuration this one overrides for a route. Both
// share one library.
func Parent(p *Host) Option {
	return func(h *Host) { h.parent = p }
}

// Host is one configuration of a filter in a host of its own.
type Host struct {
	t          testing.TB
	seed       uint64
	rnd        *rand.Rand
	rndMu      sync.Mutex
	features   bridge.Features
	attributes map[string]string
	parent     *Host

	inst bridge.Instance
	cfg  bridge.ConfigOut
	call bridge.Call

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each change
	tokens   map[uint64]*token
	next     uint64
	streams  map[uint64]*stream
	jobs     map[*bridge.Job]*views
	running  int
	interest int
	logs     []string
	metrics  []metric
	dead     []*region
	closed   bool
}

type metric struct {
	series string
	kind   uint32
	value  int64
}

type token struct {
	alive   bool
	verdict *verdict
}

// New makes a host with one configuration of a registered filter. The test fails
// if the configuration is refused.
func New(t testing.TB, filter, config string, opts ...Option) *Host {
	t.Helper()
	return newHost(t, 1, filter, config, opts)
}

// Refused answers the text with which a configuration is refused. The test fails
// if it is not.
func Refused(t testing.TB, filter, config string, opts ...Option) string {
	t.Helper()
	h := prepare(t, 1, opts)
	code, text := h.configure(filter, config)
	if code == bridge.OK {
		h.inst.ConfigDrop(h.cfg.Config)
		t.Fatalf("filter %q takes the configuration %s, which it should refuse", filter, config)
	}
	return text
}

func prepare(t testing.TB, seed uint64, opts []Option) *Host {
	h := &Host{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0x70786774657374)), changed: make(chan struct{}),
		tokens: map[uint64]*token{}, streams: map[uint64]*stream{}, jobs: map[*bridge.Job]*views{}, next: 1}
	for n := range bridge.FeatureCount {
		h.features.Set(n)
	}
	for _, o := range opts {
		o(h)
	}
	if h.parent != nil {
		h.inst = h.parent.inst
	} else {
		h.inst = bridge.New(h)
	}
	h.inst.OnWorker(0, true)
	return h
}

func (h *Host) configure(filter, config string) (int32, string) {
	in := bridge.ConfigIn{Features: h.features, Filter: filter, Name: "test", Bytes: []byte(config)}
	if h.parent != nil {
		in.Parent = h.parent.cfg.Config
	}
	return h.inst.ConfigNew(&in, &h.cfg)
}

func newHost(t testing.TB, seed uint64, filter, config string, opts []Option) *Host {
	t.Helper()
	h := prepare(t, seed, opts)
	if code, text := h.configure(filter, config); code != bridge.OK {
		t.Fatalf("filter %q refused its configuration: %s", filter, text)
	}
	for _, a := range h.cfg.Attrs {
		if _, ok := h.attributes[a.Name]; a.Required && !ok {
			t.Fatalf("filter %q requires the attribute %q: give it with Attributes", filter, a.Name)
		}
	}
	t.Cleanup(h.close)
	return h
}

func (h *Host) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.inst.ConfigDrop(h.cfg.Config)
}

// Logs are the lines that the filter has logged.
func (h *Host) Logs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.logs)
}

// Logged says whether a line of the log contains text.
func (h *Host) Logged(text string) bool {
	return slices.ContainsFunc(h.Logs(), func(l string) bool { return strings.Contains(l, text) })
}

func (h *Host) intn(n int) int {
	h.rndMu.Lock()
	defer h.rndMu.Unlock()
	return h.rnd.IntN(n)
}

// notify needs h.mu.
func (h *Host) notify() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// await waits until f, which is called with h.mu held, answers true.
func (h *Host) await(what string, f func() bool) {
	h.t.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	h.mu.Lock()
	for !f() {
		c := h.changed
		h.mu.Unlock()
		select {
		case <-c:
		case <-timeout.C:
			buf := make([]byte, 64<<10)
			buf = buf[:runtime.Stack(buf, true)]
			h.t.Fatalf("%s did not happen in %s. All goroutines:\n%s", what, Patience, buf)
		}
		h.mu.Lock()
	}
	h.mu.Unlock()
}

// ---- bridge.Host

var _ bridge.Host = (*Host)(nil)

// Name implements the bridge.
func (h *Host) Name() (string, string) { return "proxyfiltertest", "1" }

// Features implements the bridge.
func (h *Host) Features() bridge.Features { return h.features }

// Workers implements the bridge.
func (h *Host) Workers() uint32 { return 1 }

// LogLevel implements the bridge.
func (h *Host) LogLevel() uint32 { return bridge.LogDebug }

// Draining implements the bridge.
func (h *Host) Draining() bool { return false }

// CanComplete implements the bridge.
func (h *Host) CanComplete() bool { return true }

// CanApply implements the bridge.
func (h *Host) CanApply() bool { return h.features.Has(bridge.FApply) }

// NeedAsync implements the bridge.
func (h *Host) NeedAsync() {}

// Log implements the bridge.
func (h *Host) Log(level uint32, msg string) {
	h.mu.Lock()
	h.logs = append(h.logs, msg)
	closed := h.closed
	h.mu.Unlock()
	if !closed && testing.Verbose() {
		h.t.Logf("log %d: %s", level, msg)
	}
}

// Metric is what was recorded in a series: the sum of a counter, the last value of
// a gauge, the number of observations of a histogram. A series is written as
// name{label="value"}, or name alone if there are no labels.
func (h *Host) Metric(series string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.metrics {
		if m.series == series {
			return m.value
		}
	}
	return 0
}

// DefineMetric implements the bridge.
func (h *Host) DefineMetric(kind uint32, name string, labels []Field) (uint32, int32) {
	fits := regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`).MatchString
	series, ok := name, fits(name)
	for i, l := range labels {
		ok = ok && fits(l.Name)
		series += fmt.Sprintf("%c%s=%q", "{,"[min(i, 1)], l.Name, l.Value)
	}
	if len(labels) > 0 {
		series += "}"
	}
	if !ok {
		return 0, bridge.ErrArg
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, m := range h.metrics {
		if m.series == series {
			if m.kind != kind {
				return 0, bridge.ErrArg
			}
			return uint32(i + 1), bridge.OK
		}
	}
	h.metrics = append(h.metrics, metric{series: series, kind: kind})
	return uint32(len(h.metrics)), bridge.OK
}

// RecordMetric implements the bridge.
func (h *Host) RecordMetric(id uint32, value int64) int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id == 0 || int(id) > len(h.metrics) {
		return bridge.ErrNotFound
	}
	m := &h.metrics[id-1]
	switch m.kind {
	case bridge.MetricCounter:
		if value < 0 {
			return bridge.ErrArg
		}
		m.value += value
	case bridge.MetricGauge:
		m.value = value
	default:
		m.value++
	}
	return bridge.OK
}

// AddInterest implements the bridge.
func (h *Host) AddInterest(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interest += n
}

type batch struct {
	res bridge.Result
	enc bridge.Encoder
	mem *outMemory
}

func (b *batch) Result() *bridge.Result { return &b.res }

func (b *batch) Enc() *bridge.Encoder { return &b.enc }

// NewBatch implements the bridge.
func (h *Host) NewBatch(uint32) bridge.Batch {
	b := &batch{mem: newOutMemory(64 << 20)}
	b.mem.lend(&b.enc)
	return b
}

// Discard implements the bridge.
func (h *Host) Discard(b bridge.Batch) { b.Enc().Drop() }

// Complete implements the bridge.
func (h *Host) Complete(tok uint64, bb bridge.Batch, _ bool) int32 {
	b := bb.(*batch)
	v := b.mem.decode(&b.res, &b.enc)
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tokens[tok]
	if t == nil || !t.alive {
		return bridge.ErrStale
	}
	if v.action < bridge.ActContinue || v.action > bridge.ActError || v.action == bridge.ActPending {
		return bridge.ErrState
	}
	t.alive, t.verdict = false, v
	h.notify()
	return bridge.OK
}

// Apply implements the bridge.
func (h *Host) Apply(st uint64, bb bridge.Batch) int32 {
	b := bb.(*batch)
	v := b.mem.decode(&b.res, &b.enc)
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.streams[st]
	if s == nil {
		return bridge.ErrStale
	}
	for _, o := range v.ops {
		if o.kind == bridge.OpBodyWrite && s.full {
			return bridge.ErrLimit
		}
	}
	s.applied = append(s.applied, v)
	h.notify()
	for _, o := range v.ops {
		if o.kind == bridge.OpBodyWrite && o.flags&bridge.OpFlagEnd == 0 && s.slow && h.cfg.Subscribe&(1<<bridge.PhaseWake) != 0 {
			s.full = true
			return bridge.Full
		}
	}
	return bridge.OK
}

// Wake implements the bridge.
func (h *Host) Wake(st, arg uint64) int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.streams[st]
	switch {
	case s == nil:
		return bridge.ErrStale
	case h.cfg.Subscribe&(1<<bridge.PhaseWake) == 0:
		return bridge.ErrState
	}
	s.woken, s.wakeArg = true, s.wakeArg|arg
	h.notify()
	return bridge.OK
}

// Spawn implements the bridge. The function may be through before the event has
// returned, or start long after.
func (h *Host) Spawn(_ uint32, _ bool, r bridge.Runnable) {
	h.started()
	done := make(chan struct{})
	late := h.intn(3)
	go func() {
		defer h.ended()
		defer close(done)
		for range late * 10 {
			runtime.Gosched()
		}
		r.Run()
	}()
	if h.intn(3) == 0 {
		timer := time.NewTimer(time.Millisecond)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		}
	}
}

func (h *Host) started() {
	h.mu.Lock()
	h.running++
	h.mu.Unlock()
}

func (h *Host) ended() {
	h.mu.Lock()
	h.running--
	h.notify()
	h.mu.Unlock()
}

// ---- one event

// event is what is about to be delivered.
type event struct {
	phase, flags                               uint32
	arg, offset                                uint64
	fields, trailers, peerFields, peerTrailers []Field
	chunks                                     [][]byte
}

// deliver hands an event to the filter and answers its final verdict: that of
// the call, or that of the completion. nil means that the stream died meanwhile.
func (h *Host) deliver(s *stream, what *event, label string) *verdict {
	h.t.Helper()
	if s.step() {
		return nil
	}
	lent := &views{}
	ev := &bridge.Event{Phase: what.phase, Flags: what.flags, Arg: what.arg, BodyOffset: what.offset,
		Config: h.cfg.Config, User: s.user, Stream: s.handle}
	call := &h.call
	call.Init(nil)
	call.Ev = ev
	call.Headers.F = lent.fields(label+" header", what.fields)
	call.Trailers.F = lent.fields(label+" trailer", what.trailers)
	call.PeerHeaders.F = lent.fields("peer header", what.peerFields)
	call.PeerTrailers.F = lent.fields("peer trailer", what.peerTrailers)
	call.Chunks, call.Attrs = nil, nil
	for _, c := range what.chunks {
		call.Chunks = append(call.Chunks, lent.bytes(label+" body", c))
	}
	for _, a := range h.cfg.Attrs {
		v, ok := h.attributes[a.Name]
		ok = ok && a.Phases>>ev.Phase&1 != 0
		if !ok {
			v = ""
		}
		call.Attrs = append(call.Attrs, bridge.Attr{Value: lent.string("attribute "+a.Name, v), Present: ok})
	}
	var tok *token
	if h.cfg.PendPhases>>ev.Phase&1 != 0 {
		h.mu.Lock()
		ev.Token = h.next<<24 | h.next&0xffffff
		h.next++
		tok = &token{alive: true}
		h.tokens[ev.Token] = tok
		h.mu.Unlock()
	}
	s.events = append(s.events, proxyfilter.Phase(ev.Phase))
	if tok != nil && h.cfg.AsyncOnly>>ev.Phase&1 != 0 && h.intn(2) == 0 {
		h.runJob(call, lent)
		h.call = bridge.Call{X: call.X, Gen: call.Gen}
		if s.user == 0 {
			s.user = bridge.UserInterest
		}
		return h.wait(s, ev.Token, tok)
	}

	mem := newOutMemory(1 << 20)
	res := &bridge.Result{User: s.user}
	call.Res = res
	mem.lend(&call.Enc)
	h.inst.OnEvent(call)
	v := mem.decode(res, &call.Enc)
	s.user = res.User
	h.call = bridge.Call{X: call.X, Gen: call.Gen}
	h.bury(lent)
	if v.action == bridge.ActPending {
		if tok == nil {
			h.t.Fatalf("PENDING in a phase that is not in pend_phases: %s", proxyfilter.Phase(ev.Phase))
		}
		return h.wait(s, ev.Token, tok)
	}
	if tok != nil {
		h.mu.Lock()
		tok.alive = false
		h.mu.Unlock()
	}
	return v
}

// bury makes what an event lent rubbish.
func (h *Host) bury(v *views) {
	h.t.Helper()
	if w := v.die(); w != "" {
		h.t.Errorf("%s was written to: views are read only (PXG-MEM-009)", w)
	}
	h.mu.Lock()
	h.dead = append(h.dead, v.regions...)
	h.mu.Unlock()
}

// runJob takes the way of a filter whose phase is asynchronous only.
func (h *Host) runJob(c *bridge.Call, lent *views) {
	h.started()
	j := &bridge.Job{Ev: *c.Ev, Fields: c.Headers.F, Trailers: c.Trailers.F, Attrs: c.Attrs}
	for _, b := range c.Chunks {
		j.Body = append(j.Body, b...)
	}
	h.mu.Lock()
	h.jobs[j] = lent
	h.mu.Unlock()
	go func() {
		b := h.NewBatch(0)
		state, r := h.inst.RunJob(&bridge.Runner{}, j, b)
		if state == bridge.JobWaits {
			r.Run()
			return
		}
		h.FreeJob(j)
		if state == bridge.JobDecided {
			h.Complete(j.Ev.Token, b, true)
		}
	}()
}

// FreeJob implements the bridge.
func (h *Host) FreeJob(j *bridge.Job) {
	h.mu.Lock()
	lent := h.jobs[j]
	delete(h.jobs, j)
	h.mu.Unlock()
	h.bury(lent)
	h.ended()
}

// wait is for a completion, or for the test's cancelling of the stream.
func (h *Host) wait(s *stream, id uint64, t *token) *verdict {
	h.t.Helper()
	if s.step() {
		h.mu.Lock()
		won := t.alive
		t.alive = false
		h.mu.Unlock()
		if won {
			h.inst.OnCancel(h.cfg.Config, s.user, s.handle, id, 0)
		}
		return nil
	}
	for {
		h.await(fmt.Sprintf("the decision on the %s", s.events[len(s.events)-1]), func() bool { return !t.alive || s.woken })
		h.wakes(s)
		h.mu.Lock()
		alive := t.alive
		h.mu.Unlock()
		if !alive {
			return t.verdict
		}
	}
}
