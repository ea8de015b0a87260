package proxyfiltertest

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/view"
	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

var (
	typeStream  = reflect.TypeFor[proxyfilter.Stream]()
	typeHeaders = reflect.TypeFor[proxyfilter.Headers]()
	typeBody    = reflect.TypeFor[proxyfilter.Body]()
)

// standard are the first elements of the standard library's import paths.
var standard = strings.Fields(`archive bufio bytes cmp compress container context crypto database debug embed encoding
	errors expvar flag fmt go hash html image index internal io iter log maps math mime net os path plugin reflect regexp
	runtime slices sort strconv strings structs sync syscall testing text time unicode unique unsafe weak`)

// retained looks for dead views in what the filter keeps: its own value, and the
// stream's.
func (h *Host) retained(values []any) {
	h.t.Helper()
	w := walker{h: h, seen: map[visit]bool{}, budget: 1 << 16}
	for _, v := range values {
		w.walk(reflect.ValueOf(v), fmt.Sprintf("%T", v), 0)
	}
}

type visit struct {
	p uintptr
	t reflect.Type
}

type walker struct {
	h      *Host
	seen   map[visit]bool
	budget int
}

func (w *walker) walk(v reflect.Value, path string, depth int) {
	if !v.IsValid() || depth > 24 || w.budget == 0 {
		return
	}
	w.budget--
	t := v.Type()
	if t.Kind() == reflect.Struct && t.PkgPath() != "" {
		if t == typeStream || t == typeHeaders || t == typeBody {
			if !v.IsZero() {
				w.h.t.Errorf("%s keeps a %s, which is valid only until the method that got it returns (PXG-MEM-002)", strings.TrimLeft(path, "*"), t)
			}
			return
		}
		// What the standard library and the SDK keep is not the filter's, and has locks of its own.
		if first, _, _ := strings.Cut(t.PkgPath(), "/"); slices.Contains(standard, first) || t.PkgPath() == typeStream.PkgPath() {
			return
		}
	}
	switch v.Kind() {
	case reflect.String:
		w.check(view.Addr(v.String()), v.Len(), path)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			w.check(v.Pointer(), v.Len(), path)
			return
		}
		for i := range v.Len() {
			w.walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
	case reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			w.walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
	case reflect.Pointer:
		if v.IsNil() || w.seen[visit{v.Pointer(), t}] {
			return
		}
		w.seen[visit{v.Pointer(), t}] = true
		w.walk(v.Elem(), path, depth+1)
	case reflect.Interface:
		if !v.IsNil() {
			w.walk(v.Elem(), path, depth+1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.walk(v.Field(i), path+"."+t.Field(i).Name, depth+1)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			w.walk(k, path+" (key)", depth+1)
			w.walk(v.MapIndex(k), fmt.Sprintf("%s[…]", path), depth+1)
		}
	}
}

func (w *walker) check(addr uintptr, n int, path string) {
	if n == 0 {
		return
	}
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	for _, r := range w.h.dead {
		if a := view.AddrBytes(r.mem); addr >= a && addr < a+uintptr(len(r.mem)) {
			w.h.t.Errorf("%s keeps a view of %s: its memory belongs to the host and dies with the event (PXG-MEM-002). Copy it: Get instead of GetView, strings.Clone",
				strings.TrimLeft(path, "*"), r.label)
			return
		}
	}
}
