package proxyfilter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// Declaration is what a filter asks of the host for one configuration. The SDK
// fills in what it sees in the filter's methods; [Option]s of [Register] and then
// the filter's own Declare method may change it.
type Declaration struct {
	// RequestBody and ResponseBody are the modes of delivery. By default a filter
	// with OnRequestBody gets BodyStream, one with OnRequestBodyAsync or
	// ProxyGolangRequest BodyWhole, and the same for responses.
	RequestBody, ResponseBody BodyMode
	// MaxRequestBody and MaxResponseBody are how much the host holds at most for
	// this filter; 0 is the host's default, and its own limit applies.
	MaxRequestBody, MaxResponseBody uint64
	// ResizesRequest and ResizesResponse announce that a filter of a streamed body
	// changes its length.
	ResizesRequest, ResizesResponse bool

	// Pends are the phases in which [Stream.Async] may be called. Phases with an
	// Async method are among them without being named.
	Pends []Phase
	// PendTimeout is the wish for the deadline of asynchronous decisions; 0 is the
	// host's default, and its own limit applies.
	PendTimeout time.Duration
	// Nonblocking promises that the asynchronous functions of this filter never
	// block: no lock held for long, no socket, no channel. They then run one after
	// the other on one goroutine per event loop, which is cheaper, with a context
	// that is not cancelled. One that blocks nevertheless blocks all.
	Nonblocking bool
	// StreamedReplies is needed for [AsyncStream.StreamReply].
	StreamedReplies bool

	// Duplex gives up the promise that one direction is parked while the other one waits.
	Duplex bool
	// PeerHeaders makes the other direction's fields available in all events.
	PeerHeaders bool
	// Orphan asks for response phases also of streams whose request never reached this filter.
	Orphan bool
	// Subrequests asks for streams that the proxy starts for another stream.
	Subrequests bool
	// UpgradeBody asks for the bytes of upgraded connections.
	UpgradeBody bool

	// Attributes are delivered with the events of their phases.
	Attributes []Attribute
	// Fields limits the header fields delivered to these names. Empty: all.
	Fields []string
	// Require names features without which this configuration makes no sense.
	Require []Feature
}

// Attribute is a declared attribute, such as "source.address".
type Attribute struct {
	Name string
	// Phases are where it is wanted. Empty: in all subscribed phases.
	Phases []Phase
	// Required refuses the configuration on a host that does not have it.
	Required bool
}

// Declarer is a filter that declares more than its methods say.
type Declarer interface {
	Declare(d *Declaration)
}

// Option changes the declaration of all configurations of a filter.
type Option func(*Declaration)

// MayPend declares the phases in which [Stream.Async] may be called.
func MayPend(phases ...Phase) Option {
	return func(d *Declaration) { d.Pends = append(d.Pends, phases...) }
}

// RequestBody sets the mode and the limit of the request's body.
func RequestBody(m BodyMode, limit uint64) Option {
	return func(d *Declaration) { d.RequestBody, d.MaxRequestBody = m, limit }
}

// ResponseBody sets the mode and the limit of the response's body.
func ResponseBody(m BodyMode, limit uint64) Option {
	return func(d *Declaration) { d.ResponseBody, d.MaxResponseBody = m, limit }
}

// Nonblocking sets [Declaration].Nonblocking.
func Nonblocking() Option { return func(d *Declaration) { d.Nonblocking = true } }

// Feature is something that a host may be able to do.
type Feature int

func (f Feature) String() string { return bridge.FeatureName(int(f)) }

// Features that a filter may want to ask for by itself. The SDK asks for those
// that follow from a declaration.
const (
	FeatureHoldRequest         Feature = bridge.FHoldRequest
	FeatureHoldResponse        Feature = bridge.FHoldResponse
	FeatureTrailersInRequest   Feature = bridge.FTrailersInRequest
	FeatureTrailersInResponse  Feature = bridge.FTrailersInResponse
	FeatureTrailersOutRequest  Feature = bridge.FTrailersOutRequest
	FeatureTrailersOutResponse Feature = bridge.FTrailersOutResponse
	FeatureContinueGate        Feature = bridge.FContinueGate
	FeatureBodyInject          Feature = bridge.FBodyInject
	FeatureStreamReply         Feature = bridge.FStreamReply
	FeatureFlush               Feature = bridge.FFlush
	FeatureRoute               Feature = bridge.FRoute
	FeatureMetadata            Feature = bridge.FMetadata
	FeatureApply               Feature = bridge.FApply
	FeatureThreadAffine        Feature = bridge.FThreadAffine
	FeatureWireOrder           Feature = bridge.FWireOrder
)

// Env is what a configuration is made in.
type Env struct {
	// Filter is the registered name, Name this instance's name in the host.
	Filter, Name string
	// Host and HostVersion name the proxy.
	Host, HostVersion string
	// Workers is the number of event loops, 0 if the host does not know.
	Workers int
	// ValidateOnly says that the configuration will only be checked: open no
	// socket, start no goroutine, write no file.
	ValidateOnly bool
	// Parent is the Filter of the configuration that this one overrides for a route.
	Parent Filter
	// Log writes to the proxy's log.
	Log *slog.Logger

	features bridge.Features
	inst     *instance
}

// Has says whether the host can do this for this configuration.
func (e *Env) Has(f Feature) bool { return e.features.Has(int(f)) }

// Draining says that the host is shutting down.
func (e *Env) Draining() bool { return e.inst.host.Draining() }

// Go runs f on a goroutine with a panic barrier: a panic is logged and ends f
// only. In a plain goroutine it would end the proxy.
func (e *Env) Go(f func()) {
	go func() {
		defer e.inst.barrier("a goroutine of filter " + e.Filter)
		f()
	}()
}

// Provisioner prepares a decoded configuration: it sets defaults, compiles what
// needs compiling. It is called before Validate.
type Provisioner interface{ Provision(env *Env) error }

// Validator refuses a decoded configuration. The text goes to the operator.
type Validator interface{ Validate() error }

// Parser is a configuration in another format than JSON.
type Parser interface{ ParseConfig(b []byte) error }

type registration struct {
	name string
	opts []Option
	make func(b []byte, env *Env) (Filter, error)
}

var registry struct {
	sync.Mutex
	list []*registration
}

// Register adds a filter to the library, usually in an init function. C is the
// type of its configuration: the configuration's bytes are decoded as JSON into a
// new C, unknown fields being an error, and no bytes at all leave it zero. A *C
// that is a [Parser] decodes itself. Then its [Provisioner] and [Validator]
// methods are called, and newFilter. An error of any of them refuses the
// configuration, and the host shows its text.
//
// A Filter that is an [io.Closer] is closed when the last stream of its
// configuration has gone.
//
// Register panics if the name is taken.
func Register[C any](name string, newFilter func(cfg *C, env *Env) (Filter, error), opts ...Option) {
	r := &registration{name: name, opts: opts, make: func(b []byte, env *Env) (Filter, error) {
		cfg := new(C)
		if err := decode(b, cfg); err != nil {
			return nil, err
		}
		if p, ok := any(cfg).(Provisioner); ok {
			if err := p.Provision(env); err != nil {
				return nil, err
			}
		}
		if v, ok := any(cfg).(Validator); ok {
			if err := v.Validate(); err != nil {
				return nil, err
			}
		}
		return newFilter(cfg, env)
	}}
	registry.Lock()
	defer registry.Unlock()
	if name == "" || slices.ContainsFunc(registry.list, func(o *registration) bool { return o.name == name }) {
		panic(fmt.Sprintf("proxyfilter: Register(%q): the name is empty or taken", name))
	}
	registry.list = append(registry.list, r)
}

func decode(b []byte, into any) error {
	if p, ok := into.(Parser); ok {
		return p.ParseConfig(b)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		var syn *json.SyntaxError
		if errors.As(err, &syn) {
			return fmt.Errorf("configuration is not JSON: %w (at byte %d)", err, syn.Offset)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("configuration is not JSON: it ends in the middle (%d bytes)", len(b))
		}
		return fmt.Errorf("configuration does not fit %s: %w", reflect.TypeOf(into).Elem(), err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("configuration goes on after the JSON value, at byte %d", d.InputOffset())
	}
	return nil
}

func find(name string) *registration {
	registry.Lock()
	defer registry.Unlock()
	for _, r := range registry.list {
		if r.name == name {
			return r
		}
	}
	return nil
}

// Registered lists the names of the library's filters.
func Registered() []string {
	registry.Lock()
	defer registry.Unlock()
	names := make([]string, 0, len(registry.list))
	for _, r := range registry.list {
		names = append(names, r.name)
	}
	return names
}
