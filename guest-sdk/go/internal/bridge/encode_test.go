package bridge

import (
	"strings"
	"testing"
)

func TestPutName(t *testing.T) {
	for n := range 40 {
		plain := strings.Repeat("-z@[`{\x7f\x80\xc1\xff", 4)[:n]
		dst := make([]byte, n)
		if !putName(dst, plain) || string(dst) != plain {
			t.Errorf("%q became %q", plain, dst)
		}
		for i := range n {
			for _, c := range []byte("AMZ") {
				if s := plain[:i] + string(c) + plain[i+1:]; putName(dst, s) {
					t.Errorf("%q has no capital", s)
				}
			}
		}
	}
	dst := make([]byte, 18)
	if n := testing.AllocsPerRun(100, func() { putName(dst, "x-some-header-name") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
