package proxyfilter

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// config is one configuration in force.
type config struct {
	id        uint64
	inst      *instance
	env       *Env
	filter    Filter
	factory   StreamFactory
	sample    reflect.Type
	h         *handlers
	subscribe uint64
	pends     uint64
	features  bridge.Features
	attrs     []bridge.AttrWant
	decl      Declaration
	pool      sync.Pool
}

type refusal struct {
	code int32
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(code int32, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// ConfigNew is on_config_new.
func (in *instance) ConfigNew(ci *bridge.ConfigIn, co *bridge.ConfigOut) (code int32, text string) {
	var c *config
	defer func() {
		if p := recover(); p != nil {
			code, text = bridge.ErrInternal, in.panicked(p, fmt.Sprintf("configuring filter %q", ci.Filter))
			if c != nil {
				in.drop(c.id)
			}
		}
	}()
	c, err := in.newConfig(ci, co)
	if err == nil {
		return bridge.OK, ""
	}
	if r, ok := err.(*refusal); ok {
		return r.code, r.text
	}
	return bridge.ErrArg, err.Error()
}

func (in *instance) newConfig(ci *bridge.ConfigIn, co *bridge.ConfigOut) (*config, error) {
	reg := find(ci.Filter)
	if reg == nil {
		return nil, refuse(bridge.ErrNotFound, "this library has no filter %q; it has %s", ci.Filter, strings.Join(bridge.Filters(), ", "))
	}
	host, version := in.host.Name()
	env := &Env{Filter: ci.Filter, Name: ci.Name, Host: host, HostVersion: version, Workers: int(in.host.Workers()),
		ValidateOnly: ci.ValidateOnly, features: ci.Features, inst: in}
	env.Log = newLogger(in.host, ci.Filter, ci.Name)
	if ci.Parent != 0 {
		p := in.config(ci.Parent)
		if p == nil {
			return nil, refuse(bridge.ErrArg, "the parent %d is no live configuration", ci.Parent)
		}
		env.Parent = p.filter
	}
	filter, err := reg.make(ci.Bytes, env)
	if err != nil {
		return nil, err
	}
	if filter == nil {
		return nil, refuse(bridge.ErrInternal, "the factory of filter %q returned neither a filter nor an error", ci.Filter)
	}
	c := &config{inst: in, env: env, filter: filter, features: ci.Features}
	if err := c.declare(reg, co); err != nil {
		c.close()
		return nil, err
	}
	in.add(c)
	co.Config = c.id
	if c.pends != 0 && !ci.ValidateOnly {
		in.host.NeedAsync()
	}
	return c, nil
}

func (c *config) close() {
	if cl, ok := c.filter.(io.Closer); ok {
		if err := cl.Close(); err != nil {
			c.env.Log.Warn("closing the filter", "error", err)
		}
	}
}

// declare computes what the host is told.
func (c *config) declare(reg *registration, co *bridge.ConfigOut) error {
	target := c.filter
	if f, ok := c.filter.(StreamFactory); ok {
		c.factory = f
		if target = f.NewStream(); target == nil {
			return refuse(bridge.ErrInternal, "NewStream of filter %q returned nil", reg.name)
		}
		c.sample = reflect.TypeOf(target)
	}
	h := lookup(target)
	direct, async, twice := h.phases()
	if twice != "" {
		return refuse(bridge.ErrInternal, "%T has more than one method for the %s", target, twice)
	}
	if direct|async == 0 {
		return refuse(bridge.ErrInternal, "%T has none of the phase methods (OnRequestHeaders, …): nothing to do", target)
	}
	if c.factory == nil {
		c.h = h
	}

	d := &c.decl
	body := func(p Phase, whole bool) BodyMode {
		switch {
		case async&p.bit() != 0 || whole:
			return BodyWhole
		case direct&p.bit() != 0:
			return BodyStream
		}
		return 0
	}
	d.RequestBody = body(PhaseRequestBody, h.wholeReq != nil)
	d.ResponseBody = body(PhaseResponseBody, h.wholeResp != nil)
	for _, o := range reg.opts {
		o(d)
	}
	if dec, ok := c.filter.(Declarer); ok {
		dec.Declare(d)
	}
	if d.RequestBody != 0 && d.RequestBody != BodySkip && (direct|async)&PhaseRequestBody.bit() == 0 ||
		d.ResponseBody != 0 && d.ResponseBody != BodySkip && (direct|async)&PhaseResponseBody.bit() == 0 {
		return refuse(bridge.ErrInternal, "%T declares a body mode, but has no method for that body", target)
	}
	if h.wholeReq != nil && d.RequestBody != BodyWhole || h.wholeResp != nil && d.ResponseBody != BodyWhole {
		return refuse(bridge.ErrInternal, "%T has ProxyGolangRequest or ProxyGolangResponse, which needs BodyWhole", target)
	}

	c.subscribe = direct | async
	c.pends = async
	for _, p := range d.Pends {
		if c.subscribe&p.bit() == 0 || p >= PhaseLog {
			return refuse(bridge.ErrInternal, "%T may pend in %s, but has no method for it", target, p)
		}
		c.pends |= p.bit()
	}
	if d.StreamedReplies {
		if c.pends == 0 {
			return refuse(bridge.ErrInternal, "%T declares StreamedReplies, but no phase that may pend", target)
		}
		c.subscribe |= PhaseWake.bit()
	}
	if err := c.demand(); err != nil {
		return err
	}

	*co = bridge.ConfigOut{Subscribe: c.subscribe, PendPhases: c.pends,
		BodyMode:    [2]uint32{uint32(d.RequestBody), uint32(d.ResponseBody)},
		MaxBody:     [2]uint64{d.MaxRequestBody, d.MaxResponseBody},
		PendNs:      uint64(max(d.PendTimeout, 0)),
		Nonblocking: d.Nonblocking}
	if c.factory == nil {
		co.AsyncOnly = async
	}
	for _, f := range []struct {
		on  bool
		bit uint32
	}{{d.Duplex, bridge.CfgDuplex}, {d.ResizesRequest, bridge.CfgResizesRequest}, {d.ResizesResponse, bridge.CfgResizesResponse},
		{d.PeerHeaders, bridge.CfgWantPeerFields}, {d.Orphan, bridge.CfgOrphan}, {d.Subrequests, bridge.CfgSubrequests}, {d.UpgradeBody, bridge.CfgUpgradeBody}} {
		if f.on {
			co.Flags |= f.bit
		}
	}
	for _, a := range d.Attributes {
		w := bridge.AttrWant{Name: a.Name, Required: a.Required, Phases: c.subscribe}
		if len(a.Phases) > 0 {
			w.Phases = 0
			for _, p := range a.Phases {
				w.Phases |= p.bit()
			}
		}
		c.attrs = append(c.attrs, w)
	}
	co.Attrs = c.attrs
	for _, f := range d.Fields {
		co.Projection = append(co.Projection, bridge.Projection{Name: lower(f), Phases: c.subscribe})
	}
	return nil
}

// demand refuses the configuration if the host lacks what the declaration needs.
func (c *config) demand() error {
	need := map[int]string{}
	d := &c.decl
	mode := func(m BodyMode, stream, whole, observe int) {
		switch m {
		case BodyStream:
			need[stream] = "a streamed body"
		case BodyWhole:
			need[whole] = "a whole body"
		case BodyObserve:
			need[observe] = "observing a body"
		}
	}
	mode(d.RequestBody, bridge.FBodyStreamRequest, bridge.FBodyWholeRequest, bridge.FBodyObserveRequest)
	mode(d.ResponseBody, bridge.FBodyStreamResponse, bridge.FBodyWholeResponse, bridge.FBodyObserveResponse)
	for p := PhaseRequestHeaders; p <= PhaseResponseTrailers; p++ {
		if c.pends&p.bit() != 0 {
			need[bridge.FPendRequestHeaders+int(p-PhaseRequestHeaders)] = "an asynchronous decision on the " + p.String()
		}
	}
	for _, f := range []struct {
		on   bool
		n    int
		what string
	}{{d.ResizesRequest, bridge.FResizeRequest, "ResizesRequest"}, {d.ResizesResponse, bridge.FResizeResponse, "ResizesResponse"},
		{d.StreamedReplies, bridge.FStreamReply, "StreamedReplies"}, {d.StreamedReplies, bridge.FApply, "StreamedReplies"},
		{d.Orphan, bridge.FOrphan, "Orphan"}, {d.Subrequests, bridge.FSubrequests, "Subrequests"},
		{d.UpgradeBody, bridge.FUpgradeBody, "UpgradeBody"}, {c.subscribe&PhaseWake.bit() != 0, bridge.FApply, "OnWake"}} {
		if f.on {
			need[f.n] = f.what
		}
	}
	for _, f := range d.Require {
		need[int(f)] = "Declaration.Require"
	}
	var missing []string
	for n := range bridge.FeatureCount {
		if what, ok := need[n]; ok && !c.features.Has(n) {
			missing = append(missing, fmt.Sprintf("%s (for %s)", bridge.FeatureName(n), what))
		}
	}
	host, version := c.inst.host.Name()
	if len(missing) > 0 {
		return refuse(bridge.ErrUnsupported, "filter %q needs what the host %s %s does not offer here: %s",
			c.env.Filter, host, version, strings.Join(missing, ", "))
	}
	if c.pends != 0 && !c.inst.host.CanComplete() {
		return refuse(bridge.ErrUnsupported, "filter %q decides asynchronously, but the host %s %s has no entry complete, though it sets a PEND feature",
			c.env.Filter, host, version)
	}
	if (d.StreamedReplies || c.subscribe&PhaseWake.bit() != 0) && !c.inst.host.CanApply() {
		return refuse(bridge.ErrUnsupported, "filter %q needs the entries apply and wake, which the host %s %s does not have, though it sets APPLY",
			c.env.Filter, host, version)
	}
	return nil
}
