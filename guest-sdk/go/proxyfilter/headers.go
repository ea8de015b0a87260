package proxyfilter

import (
	"fmt"
	"iter"
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Field is a header or trailer field.
type Field = bridge.Field

// F makes a [Field].
func F(name, value string) Field { return Field{Name: name, Value: value} }

// Headers are the fields of a message as this filter's place in the chain sees
// them. Names are lower case. Pseudo-headers (:method, :path, :status …) come
// first.
//
// Methods whose name contains View lend the host's memory: what they answer dies
// when the phase method returns, and keeping it reads another request's bytes.
// All others answer copies.
//
// Changes are collected and applied by the host when the method has returned;
// the fields that are read do not change meanwhile. At a name that the filter
// passes, letter case does not matter.
type Headers struct {
	stamp
	l *bridge.List
}

// Len is the number of fields.
func (h Headers) Len() int { return len(h.l.F) }

// GetView is the value of the first field of this name, which must be given in
// lower case: a view.
func (h Headers) GetView(name string) (string, bool) {
	h.check(h.l.Call)
	for i := range h.l.F {
		if h.l.F[i].Name() == name {
			return h.l.F[i].Value(), true
		}
	}
	return "", false
}

// Get is a copy of the value of the first field of this name, "" if there is none.
func (h Headers) Get(name string) string {
	v, ok := h.GetView(name)
	if !ok {
		v, _ = h.GetView(lower(name))
	}
	return clone(v)
}

// Has says whether there is a field of this name.
func (h Headers) Has(name string) bool {
	_, ok := h.GetView(lower(name))
	return ok
}

// Values are copies of the values of all fields of this name.
func (h Headers) Values(name string) []string {
	h.check(h.l.Call)
	name = lower(name)
	var v []string
	for i := range h.l.F {
		if h.l.F[i].Name() == name {
			v = append(v, clone(h.l.F[i].Value()))
		}
	}
	return v
}

// AllViews ranges over all fields as views.
func (h Headers) AllViews() iter.Seq2[string, string] {
	h.check(h.l.Call)
	return func(yield func(string, string) bool) {
		list := h.l.F
		for i := range list {
			if !yield(list[i].Name(), list[i].Value()) {
				return
			}
		}
	}
}

// AtView is the i-th field as views.
func (h Headers) AtView(i int) (name, value string) {
	h.check(h.l.Call)
	return h.l.F[i].Name(), h.l.F[i].Value()
}

// Index is the index of the first field of this name, or -1.
func (h Headers) Index(name string) int {
	h.check(h.l.Call)
	name = lower(name)
	for i := range h.l.F {
		if h.l.F[i].Name() == name {
			return i
		}
	}
	return -1
}

// SensitiveAt says that the i-th field must not be logged.
func (h Headers) SensitiveAt(i int) bool {
	h.check(h.l.Call)
	return h.l.F[i].Sensitive()
}

// Clone copies all fields.
func (h Headers) Clone() []Field {
	h.check(h.l.Call)
	return cloneFields(h.l.F)
}

// Method is the request's method, as a copy.
func (h Headers) Method() string { return h.Get(":method") }

// Path is the request's path with its query, as a copy.
func (h Headers) Path() string { return h.Get(":path") }

// Authority is the request's host and port, as a copy.
func (h Headers) Authority() string { return h.Get(":authority") }

// Scheme is the request's scheme, as a copy.
func (h Headers) Scheme() string { return h.Get(":scheme") }

// Status is the response's status code, 0 if there is none.
func (h Headers) Status() int {
	v, _ := h.GetView(":status")
	return statusOf(v)
}

func statusOf(v string) int {
	n := 0
	for i := 0; i < len(v); i++ {
		if v[i] < '0' || v[i] > '9' || n > 999 {
			return 0
		}
		n = n*10 + int(v[i]-'0')
	}
	return n
}

// Set leaves one field of this name, with this value.
func (h Headers) Set(name, value string) {
	h.check(h.l.Call)
	h.l.Change(bridge.OpHeaderSet, name, value, 0)
}

// SetSensitive is Set for a value that must never be logged, traced or indexed.
func (h Headers) SetSensitive(name, value string) {
	h.check(h.l.Call)
	h.l.Change(bridge.OpHeaderSet, name, value, bridge.StrSensitive)
}

// Add appends a field.
func (h Headers) Add(name, value string) {
	h.check(h.l.Call)
	h.l.Change(bridge.OpHeaderAdd, name, value, 0)
}

// Del removes all fields of this name.
func (h Headers) Del(name string) {
	h.check(h.l.Call)
	h.l.Change(bridge.OpHeaderDelete, name, "", 0)
}

// SetAt replaces the value of the i-th field, counted in the fields as delivered
// and before all other changes.
func (h Headers) SetAt(i int, value string) { h.at(bridge.OpSetAt, i, value) }

// DelAt removes the i-th field, counted as for SetAt.
func (h Headers) DelAt(i int) { h.at(bridge.OpDeleteAt, i, "") }

func (h Headers) at(kind uint16, i int, value string) {
	h.check(h.l.Call)
	e := &h.l.Call.Enc
	switch {
	case h.l.Target == bridge.ReadOnly:
		e.Refuse(fmt.Errorf("the fields of the other direction can't be changed (index %d)", i))
	case i < 0 || i >= len(h.l.F):
		e.Refuse(fmt.Errorf("field index %d of %d fields", i, len(h.l.F)))
	default:
		e.At(kind, h.l.Target, i, value)
	}
}

// lower answers s in lower case, without allocating if it is so already.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

func clone(s string) string { return strings.Clone(s) }

// each copies all strings into one piece of memory and hands them out in order.
func each(f []bridge.RawField, yield func(i int, name, value string)) {
	n := 0
	for i := range f {
		n += len(f[i].Name()) + len(f[i].Value())
	}
	var b strings.Builder
	b.Grow(n)
	for i := range f {
		b.WriteString(f[i].Name())
		b.WriteString(f[i].Value())
	}
	s := b.String()
	for i := range f {
		a, v := len(f[i].Name()), len(f[i].Value())
		yield(i, s[:a], s[a:a+v])
		s = s[a+v:]
	}
}

func cloneFields(f []bridge.RawField) []Field {
	if len(f) == 0 {
		return nil
	}
	out := make([]Field, len(f))
	each(f, func(i int, name, value string) { out[i] = Field{Name: name, Value: value} })
	return out
}

func cloneRaw(f []bridge.RawField) []bridge.RawField {
	if len(f) == 0 {
		return nil
	}
	out := make([]bridge.RawField, len(f))
	each(f, func(i int, name, value string) { out[i] = bridge.MakeRaw(name, value) })
	return out
}
