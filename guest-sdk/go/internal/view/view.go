// Package view makes strings that share memory with bytes, and finds out whether
// they do. It is the test kit's: a view that a filter keeps can only be caught if
// its memory changes when it dies.
package view

import "unsafe"

// String is a string over b: it changes when b does.
func String(b []byte) string {
	// SAFETY: the string breaks Go's promise that strings do not change. Only the
	// test kit makes one, and hands it out as a view, whose contract says just that.
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// Addr is the address of the string's first byte.
func Addr(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s))) }

// AddrBytes is the address of the slice's first byte.
func AddrBytes(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
