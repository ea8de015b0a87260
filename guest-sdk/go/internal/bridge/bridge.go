package bridge

// Field is a header or trailer field. Whether its strings are views or copies
// is said where a Field is handed out.
type Field struct{ Name, Value string }

// Attr is the value of a declared attribute.
type Attr struct {
	Value   string
	Present bool
}

// RawField has the layout of pxg_field. A string without flags has the bits of a
// Go string; with flags its length is wrong in the upper half, and so the strings
// are reached through methods only.
type RawField struct{ name, value string }

// MakeRaw makes a RawField of plain strings.
func MakeRaw(name, value string) RawField { return RawField{name, value} }

// Name is the field's name.
func (f *RawField) Name() string { return f.name[:uint32(len(f.name))] }

// Value is the field's value.
func (f *RawField) Value() string { return f.value[:uint32(len(f.value))] }

// Sensitive says that the field must not be logged.
func (f *RawField) Sensitive() bool {
	return uint64(len(f.name)|len(f.value))>>32&uint64(StrSensitive) != 0
}

// Event has the layout of pxg_event, as of version 1.0. What it points to is
// reached through Call.
type Event struct {
	Size, Phase, Flags, Worker       uint32
	Config, User, Stream, Token, Arg uint64
	_                                [10]uint64
	BodyOffset                       uint64
	_                                [2]uint64
}

// Result has the layout of pxg_result, addresses as integers. What Go stores into
// the host's memory goes through it: a store of a pointer type makes Go's write
// barrier read what was there before, which the host has not promised anything about.
type Result struct {
	Size, Action, Flags uint32
	_                   uint32
	User                uint64
	Ops                 uintptr
	NOps                uint64
	Reply               uintptr
	Unsubscribe         uint64
	BodyMode            [2]uint32
	MoreBytes           uint64
	PendNs              uint64
	ErrPtr              uintptr
	ErrLen, ErrFlags    uint32
	ScratchOps          uintptr
	ScratchOpsCap       uint64
	Scratch             uintptr
	ScratchCap          uint64
}

// Call is one event in Go's terms: the event as it is read, the result as it is
// written. Each worker has one, used again for each event. All strings and slices
// are views that die when OnEvent returns.
type Call struct {
	Ev  *Event
	Res *Result // as the host preset it
	Enc Encoder

	Headers, Trailers, PeerHeaders, PeerTrailers List

	Chunks [][]byte
	Attrs  []Attr

	Gen uint64 // changes whenever the views die
	X   any    // the other side's own state
}

// List is one of the lists of fields of a call.
type List struct {
	F      []RawField
	Target uint32
	Call   *Call
}

// Init makes a call ready for its first event.
func (c *Call) Init(mem Memory) {
	c.Enc.Init(mem)
	c.Headers = List{Target: TargetHeaders, Call: c}
	c.Trailers = List{Target: TargetTrailers, Call: c}
	c.PeerHeaders = List{Target: ReadOnly, Call: c}
	c.PeerTrailers = List{Target: ReadOnly, Call: c}
}

// Memory is where an Encoder gets more room from.
type Memory interface {
	// More answers n zeroed bytes aligned to 16 and their address, or nil when
	// the host's limit is reached.
	More(n int) ([]byte, uintptr)
	// MoreOps answers room for n operations and its address, or nil.
	MoreOps(n int) ([]Op, uintptr)
	// Owned answers a buffer whose ownership passes to the host with the
	// operation that names it, or nil when there is none.
	Owned(n int) (buf []byte, addr uintptr, release uintptr, ctx uint64)
	// FreeOwned gives back a buffer that was not handed over after all.
	FreeOwned(ctx uint64)
}

// Batch is a result that outlives an event: memory for a completion or an
// apply, filled in and then handed to the host with Complete or Apply.
// It is used once.
type Batch interface {
	Result() *Result
	Enc() *Encoder
}

// Host is one proxy, as one copy of this library sees it.
type Host interface {
	Name() (name, version string)
	Features() Features
	Workers() uint32
	// LogLevel is the lowest level the host wants now; LogOff when it has no log.
	LogLevel() uint32
	Log(level uint32, msg string)
	Draining() bool
	// CanComplete and CanApply say whether the entries are there at all.
	CanComplete() bool
	CanApply() bool

	NewBatch(worker uint32) Batch
	// Complete and Apply consume the batch, also when they refuse it. A completion
	// may be answered OK and go to the host a moment later, unless it is to go at once.
	Complete(token uint64, b Batch, atOnce bool) int32
	Apply(stream uint64, b Batch) int32
	Discard(b Batch)
	// FreeJob gives back a job that waited.
	FreeJob(j *Job)
	Wake(stream, arg uint64) int32

	// DefineMetric answers the id of a metric, or a status.
	DefineMetric(kind uint32, name string, labels []Field) (uint32, int32)
	RecordMetric(id uint32, value int64) int32

	// Spawn runs r on a goroutine on which nothing waits for it, or, for a job
	// that never blocks, on the goroutine that serves this worker's jobs. It may be
	// called inside an event and must not block then.
	Spawn(worker uint32, nonblocking bool, r Runnable)
	// NeedAsync is called once for each configuration that may return PENDING.
	NeedAsync()
	// AddInterest changes the number of things that want to hear of the end of
	// streams whose user slot is UserInterest.
	AddInterest(n int)
}

// UserInterest is the user slot of a stream that has no object of its own and
// that something may wait on.
const UserInterest uint64 = 1

// Job is an event that was copied without entering Go, because its filter takes
// that phase asynchronously only. It and all that it points to are views of memory
// that may be C's: they are read only, and die with Host.FreeJob.
type Job struct {
	Next             *Job // a younger one of the same worker
	Ev               Event
	Fields, Trailers []RawField
	Attrs            []Attr
	Body             []byte
}

// Runner is what a caller of RunJob keeps from one call to the next. It is for one
// goroutine at a time.
type Runner struct{ X any }

// Runnable is something to be run once.
type Runnable interface{ Run() }

// JobState says what became of a job.
type JobState int

// The states of a job.
const (
	// JobWaits says that the job is to be run, and frees itself then.
	JobWaits JobState = iota
	// JobDecided says that the job is over and that its decision is in the batch.
	JobDecided
	// JobOver says that the job is over and that nothing is left to hand over.
	JobOver
)

// ConfigIn is what on_config_new is called with.
type ConfigIn struct {
	ValidateOnly bool
	Features     Features
	Filter, Name string
	Bytes        []byte
	Parent       uint64
}

// AttrWant is a declared attribute.
type AttrWant struct {
	Name     string
	Phases   uint64
	Required bool
}

// Projection limits the fields of the phases to those named.
type Projection struct {
	Name   string
	Phases uint64
}

// ConfigOut is the answer to on_config_new.
type ConfigOut struct {
	Flags       uint32
	Config      uint64
	Subscribe   uint64
	PendPhases  uint64
	BodyMode    [2]uint32
	MaxBody     [2]uint64
	PendNs      uint64
	Attrs       []AttrWant
	Projection  []Projection
	AsyncOnly   uint64 // phases that need not enter Go on the loop thread
	Nonblocking bool
}

// Instance is one host's copy of the library's state.
type Instance interface {
	// ConfigNew answers a status and the text of the error.
	ConfigNew(in *ConfigIn, out *ConfigOut) (int32, string)
	ConfigDrop(config uint64)
	// OnEvent never panics: what a filter does is answered as ActError.
	OnEvent(c *Call)
	// RunJob runs a copied event if its function never blocks, with b for its
	// decision; else it answers what is to be run on a goroutine. The caller keeps
	// b, and frees the job unless it waits.
	RunJob(r *Runner, j *Job, b Batch) (JobState, Runnable)
	OnCancel(config, user, stream, token uint64, worker uint32)
	OnStreamEnd(config, user, stream uint64, worker uint32)
	OnWorker(worker uint32, up bool)
}

// New makes an instance for a host. Package proxyfilter sets it.
var New func(h Host) Instance

// Filters lists the names of the registered filters. Package proxyfilter sets it.
var Filters func() []string

// Inspect lists the values of a configuration and a stream in which a filter may
// keep things. Package proxyfilter sets it, for package proxyfiltertest.
var Inspect func(i Instance, config, user uint64) []any

// Step is one step of the runtime recipe.
type Step struct {
	Name   string
	State  string // done, off, skipped, failed
	Detail string
}

// Recipe is how package internal/cabi answers for the runtime recipe.
var Recipe struct {
	// Off holds the steps that the library switched off before it was initialised.
	Off map[string]bool
	// Report is nil in a program that has no C boundary.
	Report func() []Step
}

// RecipeSteps are the names of the steps, in the order of a report.
var RecipeSteps = [...]string{"batch", "sysmon", "procs", "ring", "yield"}
