package proxyfilter

import (
	"fmt"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Reply is a response that the filter makes itself. The host computes its length
// and framing.
type Reply struct {
	// Status is from 200 to 599.
	Status   int
	Header   []Field
	Body     []byte
	Trailers []Field

	// GRPC makes it a gRPC reply; only then GRPCStatus counts.
	GRPC       bool
	GRPCStatus int32

	// Details is a word for the proxy's log. Clients never see it.
	Details string

	// Flush sends it without waiting for more.
	Flush bool
}

func (r *Reply) flags() (f uint32) {
	if r.GRPC {
		f |= bridge.ReplyGRPC
	}
	if r.Flush {
		f |= bridge.ReplyFlush
	}
	return f
}

func (r *Reply) fault() string {
	if r.Status < 200 || r.Status > 599 {
		return fmt.Sprintf("reply with status %d: it must be from 200 to 599", r.Status)
	}
	if r.GRPC && (r.GRPCStatus < 0 || r.GRPCStatus > 16) {
		return fmt.Sprintf("reply with gRPC status %d: it must be from 0 to 16", r.GRPCStatus)
	}
	return ""
}
