package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/view"
)

// Op has the layout of pxg_op, addresses as integers.
type Op struct {
	Kind, Flags uint16
	Target      uint32
	U0          uint64
	KeyPtr      uintptr
	KeyLen      uint32
	KeyFlags    uint32
	ValPtr      uintptr
	ValLen      uint32
	ValFlags    uint32
	Release     uintptr
	Ctx         uint64
}

// Sizes of the structures that the encoder writes as bytes.
const (
	OpSize    = 64
	FieldSize = 32
	BufSize   = 32
	ReplySize = 80
)

// ErrNoRoom is what an encoder reports when the host lends no more memory.
var ErrNoRoom = errors.New("the host's scratch limit is reached")

// OwnedFrom is the size from which a value travels in a buffer of its own
// instead of the scratch memory.
const OwnedFrom = 64 << 10

// Encoder writes operations, replies and texts into memory that the host can
// read: each byte once, in its final place.
type Encoder struct {
	ops     []Op
	opsAddr uintptr
	n       int
	buf     []byte
	addr    uintptr
	off     int
	mem     Memory
	err     error

	reply   uintptr
	errAddr uintptr
	errLen  uint32

	// Buffers that are the host's only once it has seen the result.
	owned      []uint64
	replyOwned uint64
}

// Init says where the encoder gets more room from.
func (e *Encoder) Init(mem Memory) { e.mem = mem }

// Reset starts a new batch in the memory given.
func (e *Encoder) Reset(ops []Op, opsAddr uintptr, buf []byte, addr uintptr) {
	e.ops, e.opsAddr, e.n = ops, opsAddr, 0
	e.buf, e.addr, e.off = buf, addr, 0
	if e.err != nil || len(e.owned) != 0 {
		e.err, e.owned = nil, e.owned[:0]
	}
	e.reply, e.errAddr, e.errLen, e.replyOwned = 0, 0, 0, 0
}

// Forget lets go of the memory.
func (e *Encoder) Forget() { e.ops, e.buf = nil, nil }

// Seal writes what the encoder holds into a result whose other members are set.
func (e *Encoder) Seal(r *Result) {
	if e.n > 0 {
		r.Ops, r.NOps = e.opsAddr, uint64(e.n)
	}
	r.Reply = e.reply
	if e.errLen > 0 {
		r.ErrPtr, r.ErrLen, r.ErrFlags = e.errAddr, e.errLen, 0
	}
}

// Len is the number of operations so far.
func (e *Encoder) Len() int { return e.n }

// List is the operations so far.
func (e *Encoder) List() []Op { return e.ops[:e.n] }

// Plain says that there is no failure and no reply.
func (e *Encoder) Plain() bool { return e.err == nil && e.reply == 0 }

// Err is the first failure of the batch.
func (e *Encoder) Err() error { return e.err }

// Reply is the address of the encoded reply, or 0.
func (e *Encoder) Reply() uintptr { return e.reply }

// ErrorText answers the address and length of the error text.
func (e *Encoder) ErrorText() (uintptr, uint32) { return e.errAddr, e.errLen }

// Drop forgets operations and reply, and keeps the error text.
func (e *Encoder) Drop() {
	e.n = 0
	for _, ctx := range e.owned {
		e.mem.FreeOwned(ctx)
	}
	e.owned = e.owned[:0]
	e.DropReply()
}

// DropReply forgets the reply.
func (e *Encoder) DropReply() {
	e.reply = 0
	if e.replyOwned != 0 {
		e.mem.FreeOwned(e.replyOwned)
		e.replyOwned = 0
	}
}

// op adds an operation; nil if there is no room, which fails the batch.
func (e *Encoder) op() *Op {
	if e.n < len(e.ops) {
		o := &e.ops[e.n]
		e.n++
		return o
	}
	return e.opSlow()
}

func (e *Encoder) opSlow() *Op {
	if e.err != nil || e.mem == nil {
		e.fail()
		return nil
	}
	more, addr := e.mem.MoreOps(2*len(e.ops) + 32)
	if len(more) <= e.n {
		e.fail()
		return nil
	}
	copy(more, e.ops[:e.n])
	e.ops, e.opsAddr = more, addr
	e.n++
	return &e.ops[e.n-1]
}

// Refuse fails the batch, for the first reason given.
func (e *Encoder) Refuse(err error) {
	if e.err == nil {
		e.err = err
	}
}

func (e *Encoder) fail() {
	if e.err == nil {
		e.err = ErrNoRoom
	}
}

// str copies s and answers its address; 0 for the empty string and on failure.
func (e *Encoder) str(s string) uintptr {
	if s == "" {
		return 0
	}
	if n := e.off + len(s); n <= len(e.buf) {
		copy(e.buf[e.off:n], s)
		a := e.addr + uintptr(e.off)
		e.off = n
		return a
	}
	b, a := e.take(len(s), 1)
	copy(b, s)
	return a
}

func (e *Encoder) bytes(s []byte) uintptr {
	if len(s) == 0 {
		return 0
	}
	b, a := e.take(len(s), 1)
	copy(b, s)
	return a
}

// take answers n bytes; their content is undefined.
func (e *Encoder) take(n, align int) ([]byte, uintptr) {
	off := (e.off + align - 1) &^ (align - 1)
	if off+n <= len(e.buf) {
		e.off = off + n
		return e.buf[off : off+n : off+n], e.addr + uintptr(off)
	}
	if e.err != nil || e.mem == nil {
		e.fail()
		return nil, 0
	}
	// A big piece gets its own memory, so that the rest of the current one stays in use.
	if n > 2048 {
		b, a := e.mem.More(n)
		if b == nil {
			e.fail()
		}
		return b, a
	}
	b, a := e.mem.More(4096)
	if b == nil {
		if b, a = e.mem.More(n); b == nil {
			e.fail()
			return nil, 0
		}
	}
	e.buf, e.addr, e.off = b, a, n
	return b[:n:n], a
}

// Change adds a header operation by name to the list's target: [Encoder.Header]
// without a loop or a call for the lengths that most names and values have.
func (l *List) Change(kind uint16, name, value string, valFlags uint32) {
	e := &l.Call.Enc
	n, off := e.n, e.off
	nn, nv := len(name), len(value)
	if uint(n) < uint(len(e.ops)) && off+2*short <= len(e.buf) && uint(nn-4) <= short-4 && nv <= short && l.Target <= TargetTrailers {
		// Up to 16 bytes are two words that may overlap.
		var capital uint64
		buf := view.At(e.buf, off)
		if nn >= 8 {
			a, b := view.Load64(name, 0), view.Load64(name, nn-8)
			view.Store64(buf, 0, a)
			view.Store64(buf, nn-8, b)
			capital = (a&^(a<<1) | b&^(b<<1)) & upper
		} else {
			a, b := view.Load32(name, 0), view.Load32(name, nn-4)
			view.Store32(buf, 0, a)
			view.Store32(buf, nn-4, b)
			capital = uint64(a&^(a<<1)|b&^(b<<1)) & upper
		}
		if capital == 0 {
			o := &e.ops[n]
			o.Kind, o.Flags, o.Target, o.U0 = kind, 0, l.Target, 0
			o.KeyPtr, o.KeyLen, o.KeyFlags = e.addr+uintptr(off), uint32(nn), 0
			o.ValLen, o.ValFlags = uint32(nv), valFlags
			o.Release, o.Ctx = 0, 0
			e.n, e.off = n+1, off+nn+nv
			if nv == 0 {
				o.ValPtr = 0
				return
			}
			o.ValPtr = e.addr + uintptr(off+nn)
			switch {
			case nv >= 8:
				a, b := view.Load64(value, 0), view.Load64(value, nv-8)
				view.Store64(buf, nn, a)
				view.Store64(buf, nn+nv-8, b)
			case nv >= 4:
				a, b := view.Load32(value, 0), view.Load32(value, nv-4)
				view.Store32(buf, nn, a)
				view.Store32(buf, nn+nv-4, b)
			default:
				for i := range nv {
					*view.At(e.buf, off+nn+i) = value[i]
				}
			}
			return
		}
	}
	e.Header(kind, l.Target, name, value, valFlags)
}

const (
	// short is the most bytes that Change copies by itself.
	short = 16
	// upper is the bit that capitals have, and lower case has with the one below it.
	upper = 0x4040404040404040
)

// Header adds a header operation by name. The name is written in lower case.
func (e *Encoder) Header(kind uint16, target uint32, name, value string, valFlags uint32) {
	n, off := e.n, e.off
	mid := off + len(name)
	end := mid + len(value)
	if n >= len(e.ops) || end > len(e.buf) || target > TargetTrailers || !putName(e.buf[off:mid], name) {
		e.headerSlow(kind, target, name, value, valFlags)
		return
	}
	e.n, e.off = n+1, end
	o := &e.ops[n]
	o.Kind, o.Flags, o.Target, o.U0 = kind, 0, target, 0
	o.KeyPtr, o.KeyLen, o.KeyFlags = e.addr+uintptr(off), uint32(len(name)), 0
	o.ValPtr, o.ValLen, o.ValFlags = 0, uint32(len(value)), valFlags
	o.Release, o.Ctx = 0, 0
	if value != "" {
		o.ValPtr = e.addr + uintptr(mid)
		copy(e.buf[mid:end], value)
	}
}

// putName copies name to dst, which has its length, and answers false if the name
// has an ASCII capital.
func putName(dst []byte, name string) bool {
	src := []byte(name) // not copied: it neither escapes nor changes
	n := len(src)
	if n > len(dst) {
		return false
	}
	dst = dst[:n]
	var found uint64
	if n >= 8 {
		i := 0
		for ; i < n-8; i += 8 {
			w := le.Uint64(src[i:])
			le.PutUint64(dst[i:], w)
			found |= capitals(w)
		}
		// The last eight bytes, some of which may have been copied already.
		w := le.Uint64(src[n-8:])
		le.PutUint64(dst[n-8:], w)
		return found|capitals(w) == 0
	}
	if n >= 4 {
		a, b := le.Uint32(src), le.Uint32(src[n-4:])
		le.PutUint32(dst, a)
		le.PutUint32(dst[n-4:], b)
		return capitals(uint64(a)|uint64(b)<<32) == 0
	}
	for i, c := range src {
		if c-'A' < 26 {
			return false
		}
		dst[i] = c
	}
	return true
}

// capitals has the top bit set of each byte of w that is an ASCII capital.
func capitals(w uint64) uint64 {
	const low, ones = 0x7f7f7f7f7f7f7f7f, 0x0101010101010101
	// The top bits of the sums say: at least 'A', and more than 'Z'.
	return (w&low + (0x80-'A')*ones) &^ (w&low + (0x80-'Z'-1)*ones) &^ w &^ low
}

// ReadOnly is the target of fields that can't be changed.
const ReadOnly uint32 = 0xff

func (e *Encoder) headerSlow(kind uint16, target uint32, name, value string, valFlags uint32) {
	if target > TargetTrailers {
		e.Refuse(fmt.Errorf("the fields of the other direction can't be changed (%q)", name))
		return
	}
	name = strings.ToLower(name)
	if o := e.op(); o != nil {
		*o = Op{Kind: kind, Target: target, KeyPtr: e.str(name), KeyLen: uint32(len(name)),
			ValPtr: e.str(value), ValLen: uint32(len(value)), ValFlags: valFlags}
	}
}

// At adds an operation by index.
func (e *Encoder) At(kind uint16, target uint32, index int, value string) {
	if o := e.op(); o != nil {
		*o = Op{Kind: kind, Target: target, U0: uint64(index), ValPtr: e.str(value), ValLen: uint32(len(value))}
	}
}

// Count adds PASS or DROP.
func (e *Encoder) Count(kind uint16, n uint64) {
	if o := e.op(); o != nil {
		*o = Op{Kind: kind, U0: n}
	}
}

// Data adds INJECT or BODY_WRITE.
func (e *Encoder) Data(kind, flags uint16, b []byte) {
	o := e.op()
	if o == nil {
		return
	}
	*o = Op{Kind: kind, Flags: flags, ValLen: uint32(len(b))}
	if len(b) >= OwnedFrom && e.mem != nil {
		if buf, addr, release, ctx := e.mem.Owned(len(b)); buf != nil {
			copy(buf, b)
			o.ValPtr, o.ValFlags, o.Release, o.Ctx = addr, BufOwned, release, ctx
			e.owned = append(e.owned, ctx)
			return
		}
	}
	o.ValPtr = e.bytes(b)
}

// Metadata adds METADATA_SET.
func (e *Encoder) Metadata(namespace, key, value string) {
	o := e.op()
	if o == nil {
		return
	}
	k, a := e.take(len(namespace)+len(key), 1) // the key is never empty
	if len(k) == len(namespace)+len(key) {
		copy(k, namespace)
		copy(k[len(namespace):], key)
	}
	*o = Op{Kind: OpMetadataSet, U0: uint64(len(namespace)), KeyPtr: a, KeyLen: uint32(len(k)),
		ValPtr: e.str(value), ValLen: uint32(len(value))}
}

// Metric adds METRIC.
func (e *Encoder) Metric(id uint32, value int64) {
	if o := e.op(); o != nil {
		*o = Op{Kind: OpMetric, Target: id, U0: uint64(value)}
	}
}

// Route adds ROUTE.
func (e *Encoder) Route(key, value string) {
	if o := e.op(); o != nil {
		*o = Op{Kind: OpRoute, Flags: OpFlagMust, KeyPtr: e.str(key), KeyLen: uint32(len(key)),
			ValPtr: e.str(value), ValLen: uint32(len(value))}
	}
}

// SetError sets the error text; it is cut when there is no room for it.
func (e *Encoder) SetError(text string) {
	const limit = 1024
	if len(text) > limit {
		text = text[:limit]
	}
	e.err = nil
	if text == "" {
		text = "no reason given"
	}
	if b, a := e.take(len(text), 1); b != nil {
		copy(b, text)
		e.errAddr, e.errLen = a, uint32(len(text))
		return
	}
	// The scratch is used up by operations that will not be sent: write over it.
	if n := min(len(text), len(e.buf)); n > 0 {
		copy(e.buf, text[:n])
		e.errAddr, e.errLen = e.addr, uint32(n)
	}
}

var (
	ne = binary.NativeEndian
	le = binary.LittleEndian
)

func (e *Encoder) fieldArray(f []Field) uintptr {
	if len(f) == 0 {
		return 0
	}
	b, a := e.take(len(f)*FieldSize, 8)
	if b == nil {
		return 0
	}
	for i := range f {
		p := b[i*FieldSize : (i+1)*FieldSize]
		ne.PutUint64(p, uint64(e.str(f[i].Name)))
		ne.PutUint64(p[8:], uint64(uint32(len(f[i].Name))))
		ne.PutUint64(p[16:], uint64(e.str(f[i].Value)))
		ne.PutUint64(p[24:], uint64(uint32(len(f[i].Value))))
		// A length is written as 64 bits: the upper half is the flags, 0. The
		// only native endianness the ABI allows is little (LP64 x86-64, arm64).
	}
	return a
}

// SetReply encodes a reply; a second one replaces the first.
func (e *Encoder) SetReply(status int, flags uint32, grpc int32, header, trailers []Field, body []byte, details string) {
	e.DropReply()
	r, addr := e.take(ReplySize, 8)
	if r == nil {
		return
	}
	clear(r)
	ne.PutUint32(r, ReplySize)
	ne.PutUint32(r[4:], uint32(status))
	ne.PutUint32(r[8:], flags)
	ne.PutUint32(r[12:], uint32(grpc))
	ne.PutUint64(r[16:], uint64(e.fieldArray(header)))
	ne.PutUint64(r[24:], uint64(len(header)))
	if len(body) > 0 {
		b, ba := e.take(BufSize, 8)
		if b == nil {
			return
		}
		clear(b)
		var fl uint32
		var p uintptr
		if len(body) >= OwnedFrom && e.mem != nil {
			if buf, a, release, ctx := e.mem.Owned(len(body)); buf != nil {
				copy(buf, body)
				p, fl = a, BufOwned
				e.replyOwned = ctx
				ne.PutUint64(b[16:], uint64(release))
				ne.PutUint64(b[24:], ctx)
			}
		}
		if p == 0 {
			p = e.bytes(body)
		}
		ne.PutUint64(b, uint64(p))
		ne.PutUint32(b[8:], uint32(len(body)))
		ne.PutUint32(b[12:], fl)
		ne.PutUint64(r[32:], uint64(ba))
		ne.PutUint64(r[40:], 1)
	}
	ne.PutUint64(r[48:], uint64(e.fieldArray(trailers)))
	ne.PutUint64(r[56:], uint64(len(trailers)))
	ne.PutUint64(r[64:], uint64(e.str(details)))
	ne.PutUint32(r[72:], uint32(len(details)))
	if e.err == nil {
		e.reply = addr
	}
}
