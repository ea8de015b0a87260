package cabi

import (
	"testing"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// A positive status of a later version is a success: what was accepted must not be handed over again (PXG-ABI-013).
func TestUnknownPositiveStatusIsOK(t *testing.T) {
	for _, c := range []struct{ got, want int32 }{{known(1000), bridge.OK}, {known(0), bridge.OK}, {known(1), bridge.Full}, {known(-1000), -1000}} {
		if c.got != c.want {
			t.Errorf("got %d, want %d", c.got, c.want)
		}
	}
}
