package view

import "unsafe"

// Words of strings and buffers, for short copies that are worth neither a call nor
// bounds checks of their own. Nothing here checks: the caller has.

// At is the i-th byte of b, which has more than i bytes.
func At(b []byte, i int) *byte {
	// SAFETY: i < len(b), by the caller.
	return (*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), i))
}

// Load64 is the word at offset i of s, which has i+8 bytes.
func Load64(s string, i int) uint64 {
	// SAFETY: i+8 <= len(s), by the caller; the architectures of the ABI load unaligned words.
	return *(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.StringData(s)), i))
}

// Load32 is Load64 for four bytes.
func Load32(s string, i int) uint32 {
	// SAFETY: as Load64, i+4 <= len(s).
	return *(*uint32)(unsafe.Add(unsafe.Pointer(unsafe.StringData(s)), i))
}

// Store64 writes w at offset i behind p, where i+8 bytes may be written.
func Store64(p *byte, i int, w uint64) {
	// SAFETY: the bytes belong to the caller's buffer; unaligned as in Load64.
	*(*uint64)(unsafe.Add(unsafe.Pointer(p), i)) = w
}

// Store32 is Store64 for four bytes.
func Store32(p *byte, i int, w uint32) {
	// SAFETY: as Store64.
	*(*uint32)(unsafe.Add(unsafe.Pointer(p), i)) = w
}
