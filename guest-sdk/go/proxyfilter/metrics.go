package proxyfilter

import (
	"fmt"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Metric is a series in the proxy's metrics. The zero Metric, and one that was made
// for a proxy without metrics, records nothing.
type Metric struct {
	inst *instance
	id   uint32
}

// Counter defines a series that only grows, under the name and with the labels
// given; the same ones answer the same series. In a proxy without metrics, and
// where a configuration is only validated, it records nothing.
//
// Names and label names are letters, digits and _. Never make labels of what
// clients send: the number of series is limited.
func (e *Env) Counter(name string, labels ...Field) (Metric, error) {
	return e.metric(bridge.MetricCounter, name, labels)
}

// Gauge defines a series of which each record is the new value.
func (e *Env) Gauge(name string, labels ...Field) (Metric, error) {
	return e.metric(bridge.MetricGauge, name, labels)
}

// Histogram defines a series of which each record is an observation. The proxy
// chooses the buckets.
func (e *Env) Histogram(name string, labels ...Field) (Metric, error) {
	return e.metric(bridge.MetricHistogram, name, labels)
}

func (e *Env) metric(kind uint32, name string, labels []Field) (Metric, error) {
	if e.ValidateOnly {
		return Metric{}, nil
	}
	id, code := e.inst.host.DefineMetric(kind, name, labels)
	switch {
	case code >= bridge.OK:
		return Metric{inst: e.inst, id: id}, nil
	case code == bridge.ErrUnsupported:
		return Metric{}, nil
	case code == bridge.ErrArg:
		return Metric{}, fmt.Errorf("metric %q with labels %v: a name is not of letters, digits and _, or it is defined already with another kind or other labels", name, labels)
	case code == bridge.ErrLimit:
		return Metric{}, fmt.Errorf("metric %q: the host's limit of series is reached", name)
	}
	return Metric{}, fmt.Errorf("metric %q: the host answered %s", name, statusName(code))
}

// Record records a value outside of streams, from any goroutine. Within an event
// [Stream.Record] does it without a call into the proxy.
func (m Metric) Record(value int64) {
	if m.inst != nil {
		m.inst.host.RecordMetric(m.id, value)
	}
}

func (m Metric) encode(e *bridge.Encoder, value int64) {
	if m.inst != nil {
		e.Metric(m.id, value)
	}
}
