// Package bridge is the seam between the pure Go SDK (package proxyfilter) and
// whatever stands on its other side: the C boundary of a real proxy (package
// internal/cabi) or the in-process host of package proxyfiltertest.
//
// It has no cgo and no unsafe. Structures that end up in the host's memory are
// declared here with addresses as uintptr: the pure Go side fills them in place,
// once, and no Go pointer and no garbage collector write barrier is ever
// involved. Package internal/cabi asserts at compile time that their layout and
// the constants below equal those of proxy_golang.h.
package bridge
