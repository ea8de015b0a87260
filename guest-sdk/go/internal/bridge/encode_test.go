package bridge

import (
	"strings"
	"testing"
)

func TestHeaderNamesAreWrittenInLowerCase(t *testing.T) {
	var call Call
	call.Init(nil)
	e := &call.Enc
	t.Run("Header", func(t *testing.T) {
		names(t, e, func(name, value string) { e.Header(OpHeaderSet, TargetHeaders, name, value, 0) })
	})
	t.Run("Change", func(t *testing.T) {
		names(t, e, func(name, value string) { call.Headers.Change(OpHeaderSet, name, value, 0) })
	})
}

func names(t *testing.T, e *Encoder, set func(name, value string)) {
	const base = 1 << 20
	ops, buf := make([]Op, 8), make([]byte, 256)
	header := func(name, value string) (string, string) {
		clear(buf)
		e.Reset(ops, base*2, buf, base)
		set(name, value)
		if e.Err() != nil || e.Len() != 1 {
			t.Fatalf("%q: %v, %d operations", name, e.Err(), e.Len())
		}
		o := e.List()[0]
		text := func(p uintptr, n uint32) string {
			if n == 0 {
				if p != 0 {
					t.Errorf("%q: an empty string at %#x", name, p)
				}
				return ""
			}
			return string(buf[p-base:][:n])
		}
		return text(o.KeyPtr, o.KeyLen), text(o.ValPtr, o.ValLen)
	}
	for _, letters := range []string{"-z@[`{\x7f~aby", "-zaby09.mn"} {
		for n := 1; n < 40; n++ {
			plain := strings.Repeat(letters, 4)[:n]
			if key, val := header(plain, plain); key != plain || val != plain {
				t.Errorf("%q: %q became %q: %q", plain, plain, key, val)
			}
			for i := range n {
				for _, c := range "AMZ" {
					s := plain[:i] + string(c) + plain[i+1:]
					if key, val := header(s, "V"); key != strings.ToLower(s) || val != "V" {
						t.Errorf("%q: V became %q: %q", s, key, val)
					}
				}
			}
		}
	}
	if key, val := header("x", ""); key != "x" || val != "" {
		t.Errorf("%q: %q", key, val)
	}
	for _, name := range []string{"x-some-header-name", "x-some-header"} {
		if n := testing.AllocsPerRun(100, func() {
			e.Reset(ops, base*2, buf, base)
			set(name, "value")
		}); n != 0 {
			t.Errorf("%q: %v allocations", name, n)
		}
	}
}

func TestReadOnlyFieldsAreNotChanged(t *testing.T) {
	var call Call
	call.Init(nil)
	ops, buf := make([]Op, 8), make([]byte, 256)
	for _, set := range []func(){
		func() { call.Enc.Header(OpHeaderSet, ReadOnly, "x-name", "y", 0) },
		func() { call.PeerHeaders.Change(OpHeaderSet, "x-name", "y", 0) },
	} {
		call.Enc.Reset(ops, 0, buf, 0)
		set()
		if call.Enc.Err() == nil || call.Enc.Len() != 0 {
			t.Error("a read-only field is changed")
		}
	}
}

// What Change and Header write is the same to the byte, also where room ends.
func TestChangeIsHeader(t *testing.T) {
	const base = 1 << 20
	text := "abcdefghijklmnopqrstuvwxyz-0123456789_abcdefgh"
	var call Call
	call.Init(nil)
	e := &call.Enc
	for room := range 70 {
		for nn := range 20 {
			for nv := range 20 {
				var done [2]struct {
					ops  [3]Op
					buf  [80]byte
					n    int
					fail bool
				}
				for i := range done {
					d := &done[i]
					e.Reset(d.ops[:2], 2*base, d.buf[:room], base)
					for range 3 {
						if i == 0 {
							e.Header(OpHeaderAdd, TargetTrailers, text[:nn], text[:nv], StrSensitive)
						} else {
							call.Trailers.Change(OpHeaderAdd, text[:nn], text[:nv], StrSensitive)
						}
					}
					d.n, d.fail = e.Len(), e.Err() != nil
				}
				if done[0] != done[1] {
					t.Fatalf("room %d, name %d, value %d: Header wrote %+v, Change %+v", room, nn, nv, done[0], done[1])
				}
			}
		}
	}
}
