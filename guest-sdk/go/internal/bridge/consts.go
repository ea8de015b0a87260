package bridge

// Status codes.
const (
	OK             int32 = 0
	Full           int32 = 1
	ErrStale       int32 = -1
	ErrState       int32 = -2
	ErrArg         int32 = -3
	ErrUnsupported int32 = -4
	ErrLimit       int32 = -5
	ErrThread      int32 = -6
	ErrVersion     int32 = -7
	ErrNotFound    int32 = -8
	ErrInternal    int32 = -9
)

// Flags of strings and buffers.
const (
	StrAbsent    uint32 = 0x1
	StrSensitive uint32 = 0x2
	BufBorrowed  uint32 = 0x0
	BufStatic    uint32 = 0x10
	BufOwned     uint32 = 0x20
)

// Operations.
const (
	OpHeaderSet    uint16 = 1
	OpHeaderAdd    uint16 = 2
	OpHeaderDelete uint16 = 3
	OpSetAt        uint16 = 4
	OpDeleteAt     uint16 = 5
	OpPass         uint16 = 8
	OpDrop         uint16 = 9
	OpInject       uint16 = 10
	OpBodyWrite    uint16 = 11
	OpMetadataSet  uint16 = 16
	OpMetric       uint16 = 17
	OpRoute        uint16 = 18

	OpFlagMust uint16 = 0x1
	OpFlagEnd  uint16 = 0x2

	TargetHeaders  uint32 = 0
	TargetTrailers uint32 = 1
)

// Phases.
const (
	PhaseRequestHeaders   uint32 = 1
	PhaseRequestBody      uint32 = 2
	PhaseRequestTrailers  uint32 = 3
	PhaseResponseHeaders  uint32 = 4
	PhaseResponseBody     uint32 = 5
	PhaseResponseTrailers uint32 = 6
	PhaseLog              uint32 = 7
	PhaseWake             uint32 = 8
)

// Event flags.
const (
	EvEndStream   uint32 = 0x0001
	EvBodyEnd     uint32 = 0x0002
	EvWholeBody   uint32 = 0x0004
	EvHeadersHeld uint32 = 0x0008
	EvOverLimit   uint32 = 0x0010
	EvCanReply    uint32 = 0x0020
	EvLocalOrigin uint32 = 0x0040
	EvEOSUnknown  uint32 = 0x0080
	EvUpgraded    uint32 = 0x0100
	EvRedirected  uint32 = 0x0200
	EvSubrequest  uint32 = 0x0400
	EvResumed     uint32 = 0x0800
	EvWritable    uint32 = 0x1000
)

// Actions.
const (
	ActUnset    uint32 = 0
	ActContinue uint32 = 1
	ActPending  uint32 = 2
	ActMore     uint32 = 3
	ActReply    uint32 = 4
	ActReset    uint32 = 5
	ActError    uint32 = 6
)

// Body modes and directions.
const (
	BodyUnset   uint32 = 0
	BodySkip    uint32 = 1
	BodyStream  uint32 = 2
	BodyWhole   uint32 = 3
	BodyObserve uint32 = 4

	DirRequest  = 0
	DirResponse = 1
)

// Flags of results, replies, configurations and attributes.
const (
	ResResizes uint32 = 0x1
	ResFlush   uint32 = 0x2

	ReplyGRPC  uint32 = 0x1
	ReplyOpen  uint32 = 0x2
	ReplyFlush uint32 = 0x4

	CfgInValidateOnly  uint32 = 0x1
	CfgDuplex          uint32 = 0x1
	CfgResizesRequest  uint32 = 0x2
	CfgResizesResponse uint32 = 0x4
	CfgWantPeerFields  uint32 = 0x8
	CfgOrphan          uint32 = 0x10
	CfgSubrequests     uint32 = 0x20
	CfgUpgradeBody     uint32 = 0x40

	AttrRequired uint32 = 0x1
)

// Log levels.
const (
	LogTrace uint32 = 0
	LogDebug uint32 = 1
	LogInfo  uint32 = 2
	LogWarn  uint32 = 3
	LogError uint32 = 4
	LogOff   uint32 = 5
)

// Kinds of metrics.
const (
	MetricCounter   uint32 = 1
	MetricGauge     uint32 = 2
	MetricHistogram uint32 = 3
)

// Features.
const (
	FPendRequestHeaders   = 0
	FPendRequestBody      = 1
	FPendRequestTrailers  = 2
	FPendResponseHeaders  = 3
	FPendResponseBody     = 4
	FPendResponseTrailers = 5
	FBodyStreamRequest    = 8
	FBodyStreamResponse   = 9
	FBodyWholeRequest     = 10
	FBodyWholeResponse    = 11
	FBodyObserveRequest   = 12
	FBodyObserveResponse  = 13
	FHoldRequest          = 14
	FHoldResponse         = 15
	FResizeRequest        = 16
	FResizeResponse       = 17
	FExactEOSRequest      = 18
	FExactEOSResponse     = 19
	FTrailersInRequest    = 20
	FTrailersInResponse   = 21
	FTrailersOutRequest   = 22
	FTrailersOutResponse  = 23
	FPartialRelease       = 24
	FContinueGate         = 25
	FBodyInject           = 26
	FStreamReply          = 27
	FFlush                = 28
	FReplyRefilter        = 29
	FRoute                = 30
	FMetadata             = 31
	FOwnedBuf             = 32
	FWireOrder            = 33
	FOrphan               = 34
	FSubrequests          = 35
	FUpgradeBody          = 36
	FThreadAffine         = 37
	FBatchEnd             = 38
	FConfigReject         = 39
	FConfigThread         = 40
	FL4                   = 41
	FApply                = 42

	// FeatureCount is one more than the highest feature this SDK knows.
	FeatureCount = 43
)

var featureNames = [FeatureCount]string{
	"PEND_REQUEST_HEADERS", "PEND_REQUEST_BODY", "PEND_REQUEST_TRAILERS",
	"PEND_RESPONSE_HEADERS", "PEND_RESPONSE_BODY", "PEND_RESPONSE_TRAILERS",
	"PEND_L4_OPEN", "PEND_L4_DATA",
	"BODY_STREAM_REQUEST", "BODY_STREAM_RESPONSE", "BODY_WHOLE_REQUEST", "BODY_WHOLE_RESPONSE",
	"BODY_OBSERVE_REQUEST", "BODY_OBSERVE_RESPONSE", "HOLD_REQUEST", "HOLD_RESPONSE",
	"RESIZE_REQUEST", "RESIZE_RESPONSE", "EXACT_EOS_REQUEST", "EXACT_EOS_RESPONSE",
	"TRAILERS_IN_REQUEST", "TRAILERS_IN_RESPONSE", "TRAILERS_OUT_REQUEST", "TRAILERS_OUT_RESPONSE",
	"PARTIAL_RELEASE", "CONTINUE_GATE", "BODY_INJECT", "STREAM_REPLY", "FLUSH", "REPLY_REFILTER",
	"ROUTE", "METADATA", "OWNED_BUF", "WIRE_ORDER", "ORPHAN", "SUBREQUESTS", "UPGRADE_BODY",
	"THREAD_AFFINE", "BATCH_END", "CONFIG_REJECT", "CONFIG_THREAD", "L4", "APPLY",
}

// Features is a set of features, as in the host's table.
type Features [4]uint64

// Has says whether feature n is set.
func (f Features) Has(n int) bool { return f[n>>6]&(1<<(n&63)) != 0 }

// Set adds feature n.
func (f *Features) Set(n int) { f[n>>6] |= 1 << (n & 63) }

// FeatureName is the name of feature n as the specification spells it.
func FeatureName(n int) string {
	if n >= 0 && n < FeatureCount {
		return featureNames[n]
	}
	return "UNKNOWN"
}
