package proxyfiltertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/view"
)

// poison begins the rubbish that a dead view is filled with: no UTF-8 text and no
// header has this byte.
const poison = 0xF5

// region is the memory of one view.
type region struct {
	label string
	mem   []byte
	was   []byte
}

// views is the memory that one event lends.
type views struct{ regions []*region }

func (v *views) bytes(label string, b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	r := &region{label: label, mem: bytes.Clone(b), was: bytes.Clone(b)}
	v.regions = append(v.regions, r)
	return r.mem
}

func (v *views) string(label, s string) string { return view.String(v.bytes(label, []byte(s))) }

func (v *views) fields(what string, f []bridge.Field) []bridge.RawField {
	out := make([]bridge.RawField, len(f))
	for i := range f {
		out[i] = bridge.MakeRaw(v.string(fmt.Sprintf("the name of %s %q", what, f[i].Name), f[i].Name),
			v.string(fmt.Sprintf("%s %q", what, f[i].Name), f[i].Value))
	}
	return out
}

// die poisons the memory and answers the label of a region that was written to.
func (v *views) die() (written string) {
	for _, r := range v.regions {
		if !bytes.Equal(r.mem, r.was) && written == "" {
			written = r.label
		}
		r.mem[0] = poison
		for i := 1; i < len(r.mem); i++ {
			r.mem[i] = r.label[(i-1)%len(r.label)]
		}
	}
	return written
}

// outMemory is the memory that a filter writes into, with made-up addresses.
type outMemory struct {
	mu     sync.Mutex
	next   uintptr
	bufs   []outBuf
	ops    []outOps
	owned  map[uint64]bool
	budget int
}

type outBuf struct {
	addr uintptr
	b    []byte
}

type outOps struct {
	addr uintptr
	ops  []bridge.Op
}

func newOutMemory(budget int) *outMemory {
	return &outMemory{next: 1 << 40, owned: map[uint64]bool{}, budget: budget}
}

func (m *outMemory) addr(n int) uintptr {
	a := m.next
	m.next += uintptr(n+0xffff) &^ 0xffff
	return a
}

func (m *outMemory) buf(n int) ([]byte, uintptr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := outBuf{m.addr(n), make([]byte, n)}
	m.bufs = append(m.bufs, b)
	return b.b, b.addr
}

func (m *outMemory) opArray(n int) ([]bridge.Op, uintptr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := outOps{m.addr(n * bridge.OpSize), make([]bridge.Op, n)}
	m.ops = append(m.ops, o)
	return o.ops, o.addr
}

// lend is what a call or a batch starts with: the least that a host may offer.
func (m *outMemory) lend(e *bridge.Encoder) {
	ops, oa := m.opArray(32)
	buf, ba := m.buf(4096)
	e.Init(m)
	e.Reset(ops, oa, buf, ba)
}

func (m *outMemory) spend(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.budget -= n
	return m.budget >= 0
}

// More implements bridge.Memory.
func (m *outMemory) More(n int) ([]byte, uintptr) {
	if !m.spend(n) {
		return nil, 0
	}
	return m.buf(n)
}

// MoreOps implements bridge.Memory.
func (m *outMemory) MoreOps(n int) ([]bridge.Op, uintptr) {
	if !m.spend(n * bridge.OpSize) {
		return nil, 0
	}
	return m.opArray(n)
}

// Owned implements bridge.Memory.
func (m *outMemory) Owned(n int) ([]byte, uintptr, uintptr, uint64) {
	b, a := m.buf(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owned[uint64(a)] = true
	return b, a, 1, uint64(a)
}

// FreeOwned implements bridge.Memory.
func (m *outMemory) FreeOwned(ctx uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.owned[ctx] {
		panic("proxyfiltertest: an owned buffer was released twice")
	}
	delete(m.owned, ctx)
}

func (m *outMemory) read(addr uintptr, n uint32) []byte {
	if n == 0 {
		return nil
	}
	for _, b := range m.bufs {
		if addr >= b.addr && addr+uintptr(n) <= b.addr+uintptr(len(b.b)) {
			return bytes.Clone(b.b[addr-b.addr:][:n])
		}
	}
	panic(fmt.Sprintf("proxyfiltertest: result memory %#x+%d was never lent", addr, n))
}

// op is a decoded operation.
type op struct {
	kind, flags uint16
	target      uint32
	u0          uint64
	key, val    []byte
}

// reply is a decoded reply.
type reply struct {
	status           int
	flags            uint32
	grpc             int32
	header, trailers []bridge.Field
	body             []byte
	details          string
}

// verdict is a decoded result.
type verdict struct {
	action, flags uint32
	unsubscribe   uint64
	bodyMode      [2]uint32
	more          uint64
	ops           []op
	reply         *reply
	err           string
}

// decode copies everything out of the result's memory.
func (m *outMemory) decode(r *bridge.Result, e *bridge.Encoder) *verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := &verdict{action: r.Action, flags: r.Flags, unsubscribe: r.Unsubscribe, bodyMode: r.BodyMode, more: r.MoreBytes}
	for _, o := range e.List() {
		v.ops = append(v.ops, op{o.Kind, o.Flags, o.Target, o.U0, m.read(o.KeyPtr, o.KeyLen), m.read(o.ValPtr, o.ValLen)})
	}
	if a, n := e.ErrorText(); n > 0 {
		v.err = string(m.read(a, n))
	}
	if a := e.Reply(); a != 0 {
		v.reply = m.reply(m.read(a, bridge.ReplySize))
	}
	return v
}

var ne = binary.NativeEndian

func (m *outMemory) reply(b []byte) *reply {
	r := &reply{status: int(ne.Uint32(b[4:])), flags: ne.Uint32(b[8:]), grpc: int32(ne.Uint32(b[12:])),
		header:   m.fields(uintptr(ne.Uint64(b[16:])), ne.Uint64(b[24:])),
		trailers: m.fields(uintptr(ne.Uint64(b[48:])), ne.Uint64(b[56:])),
		details:  string(m.read(uintptr(ne.Uint64(b[64:])), ne.Uint32(b[72:])))}
	if n := ne.Uint64(b[40:]); n > 0 {
		for buf := m.read(uintptr(ne.Uint64(b[32:])), uint32(n)*bridge.BufSize); len(buf) > 0; buf = buf[bridge.BufSize:] {
			r.body = append(r.body, m.read(uintptr(ne.Uint64(buf)), ne.Uint32(buf[8:]))...)
		}
	}
	return r
}

func (m *outMemory) fields(a uintptr, n uint64) (f []bridge.Field) {
	for b := m.read(a, uint32(n)*bridge.FieldSize); len(b) > 0; b = b[bridge.FieldSize:] {
		f = append(f, bridge.Field{
			Name:  string(m.read(uintptr(ne.Uint64(b)), ne.Uint32(b[8:]))),
			Value: string(m.read(uintptr(ne.Uint64(b[16:])), ne.Uint32(b[24:]))),
		})
	}
	return f
}
