package bridge

import (
	"strings"
	"testing"
)

func TestHeaderNamesAreWrittenInLowerCase(t *testing.T) {
	const base = 1 << 20
	ops, buf := make([]Op, 8), make([]byte, 256)
	var e Encoder
	header := func(name, value string) (string, string) {
		clear(buf)
		e.Reset(ops, base*2, buf, base)
		e.Header(OpHeaderSet, TargetHeaders, name, value, 0)
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
	for n := 1; n < 40; n++ {
		plain := strings.Repeat("-z@[`{\x7f~aby", 4)[:n]
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
	if key, val := header("x", ""); key != "x" || val != "" {
		t.Errorf("%q: %q", key, val)
	}
	e.Reset(ops, base*2, buf, base)
	if n := testing.AllocsPerRun(100, func() {
		e.Reset(ops, base*2, buf, base)
		e.Header(OpHeaderSet, TargetHeaders, "x-some-header-name", "value", 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	e.Reset(ops, base*2, buf, base)
	e.Header(OpHeaderSet, ReadOnly, "x", "y", 0)
	if e.Err() == nil || e.Len() != 0 {
		t.Error("a read-only field is changed")
	}
}
