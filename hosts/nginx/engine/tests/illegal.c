/* SPDX-License-Identifier: Apache-2.0 */

/* What a guest may not answer, one line each: as a result of an event it is a failure, by `complete` an answer at once that
 * leaves the token alive, or, where only the stream's state tells, a failure when its turn comes. Nothing of such a result
 * is applied; what is merely too late, or needs a feature that is clear, is skipped and counted instead. */

#include "stream.h"

#define T(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define VAL(text) .val = {T(text), NULL, 0}
#define LINE .line = __LINE__
#define WITHOUT(feature) .without = 1ull << PXG_F_##feature
#define MUST .flags = PXG_OPF_MUST
#define RH PXG_PHASE_REQUEST_HEADERS
#define RB PXG_PHASE_REQUEST_BODY
#define RT PXG_PHASE_REQUEST_TRAILERS
#define SH PXG_PHASE_RESPONSE_HEADERS
#define SB PXG_PHASE_RESPONSE_BODY
#define ST PXG_PHASE_RESPONSE_TRAILERS

typedef struct row {
  int line;
  uint32_t at, flag; /* The event, by phase and a flag that it has. */
  pxg_op op;
  pxg_result r; /* Besides: without an action it is CONTINUE, `size` is what is left out of it. */
  pxg_reply reply;
  uint64_t without; /* Features that the configuration does not get. */
  uint32_t mode;    /* Of the request's body; UNSET: STREAM. */
  bool unset, held; /* UNSET is meant; the request's headers are held by a MORE before. */
  bool late;        /* Known only when a completion's turn comes. */
  bool skipped;     /* No failure. */
  int32_t status;
  const char *text;
} row;

static const pxg_field good = {T("x-good"), T("1")}, capital = {T("X-Bad"), T("1")}, host = {T("host"), T("1")},
                       pseudo = {T(":status"), T("200")}, absent = {T("x-absent"), {NULL, 0, PXG_STR_ABSENT}};
static const pxg_buf null_buf = {{NULL, 3, 0}, NULL, 0};
static uint8_t big[(64 << 10) + 1];

#define U PXG_E_UNSUPPORTED
#define A PXG_E_ARG
#define STATE PXG_E_STATE

/* clang-format off */
static const row rows[] = {
    /* Operations in themselves. */
    {LINE, .at = RH, .op = {.kind = 999}, .skipped = true},
    {LINE, .at = RH, .op = {.kind = 999, MUST}, .status = U, .text = "found kind 999 with MUST [PXG-MUT-002]"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .flags = 0x100, .key = T("x"), VAL("1")}, .status = U, .text = "operation: found flags 0x100"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .flags = PXG_OPF_END, .key = T("x"), VAL("1")}, .status = A, .text = "found END, which is legal on BODY_WRITE only"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .target = 4, .key = T("x"), VAL("1")}, .status = U, .text = "found target 4"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .target = PXG_TARGET_CLIENT, .key = T("x"), VAL("1")}, .status = A, .text = "found target 3, expected 0 or 1"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .u0 = 1, .key = T("x"), VAL("1")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_SET_AT, .key = T("x"), VAL("1")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_DELETE, .key = T("x"), VAL("1")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METRIC, .key = T("x")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_PASS, .key = T("x")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_DROP, VAL("x")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_INJECT, .u0 = 1, VAL("x")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_INJECT, .target = PXG_TARGET_UPSTREAM, VAL("x")}, .status = A, .text = "found target 2, expected 0"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_PASS}, .status = A, .text = "found in request_headers, where it is not legal"},
    {LINE, .at = RT, .op = {.kind = PXG_OP_INJECT, VAL("x")}, .status = A, .text = "found in request_trailers, where it is not legal"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_BODY_WRITE, VAL("x")}, .status = A, .text = "found in request_body, where it is not legal"},
    {LINE, .at = PXG_PHASE_WAKE, .op = {.kind = PXG_OP_BODY_WRITE, .u0 = 1, VAL("x")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = PXG_PHASE_WAKE, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), VAL("1")}, .status = A, .text = "found in wake, where it is not legal"},
    {LINE, .at = PXG_PHASE_WAKE, .op = {.kind = PXG_OP_DROP}, .status = A, .text = "found in wake, where it is not legal"},
    {LINE, .at = PXG_PHASE_LOG, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x"), VAL("1")}, .status = A, .text = "found in log, where it is not legal"},
    /* Strings and buffers. */
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = {NULL, 2, 0}, VAL("1")}, .status = A, .text = "operation.key: found NULL with length 2"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), .val = {{NULL, 2, 0}, NULL, 0}}, .status = A, .text = "operation.val: found NULL with length 2"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = {(const uint8_t *)"x", 1, 0x40}, VAL("1")}, .status = U, .text = "operation.key: found flags 0x40"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), .val = {{(const uint8_t *)"x", 1, 0x80}, NULL, 0}}, .status = U, .text = "operation.val: found flags 0x80"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), .val = {{NULL, 0, PXG_STR_ABSENT}, NULL, 0}}, .status = A, .text = "found an ABSENT value [PXG-HDR-002]"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), .val = {{(const uint8_t *)"x", 1, PXG_STR_ABSENT}, NULL, 0}}, .status = A, .text = "found ABSENT with pointer or length"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), .val = {{(const uint8_t *)"x", 1, PXG_BUF_OWNED}, NULL, 0}}, .status = A, .text = "found OWNED without release"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), .val = {{(const uint8_t *)"x", 1, PXG_BUF_OWNED | PXG_BUF_STATIC}, release, 1}}, .status = A, .text = "found STATIC and OWNED"},
    /* Names and values: 6.3, 6.4. */
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, VAL("1")}, .status = A, .text = "a name with a byte that is not legal in names"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x y"), VAL("1")}, .status = A, .text = "a name with a byte"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x\0y"), VAL("1")}, .status = A, .text = "a name with a byte"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_DELETE, .key = T("X")}, .status = A, .text = "on `X`: found a name with a byte"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x"), VAL("1\r\ny: 2")}, .status = A, .text = "a value with a byte that is not legal in values"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x"), VAL("1\0")}, .status = A, .text = "a value with a byte"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x"), VAL("\x7f")}, .status = A, .text = "a value with a byte"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x"), VAL(" 1")}, .status = A, .text = "a value with a byte"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("x"), VAL("1\t")}, .status = A, .text = "a value with a byte"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_SET_AT, .u0 = 1, VAL("1\n")}, .status = A, .text = "a value with a byte"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("connection"), VAL("1")}, .status = A, .text = "on `connection`: found a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T("content-length"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_DELETE, .key = T("host")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("keep-alive"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("proxy-connection"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("te"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("trailer"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("upgrade"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("expect"), VAL("1")}, .status = A, .text = "a field that the host owns"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T("transfer-encoding"), VAL("chunked")}, .status = A, .text = "a field that the host owns"},
    /* Pseudo-headers: 6.2. */
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_ADD, .key = T(":path"), VAL("/")}, .status = A, .text = "a pseudo-header, which can only be set"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_DELETE, .key = T(":path")}, .status = A, .text = "a pseudo-header, which can only be set"},
    {LINE, .at = RT, .op = {.kind = PXG_OP_HEADER_SET, .target = PXG_TARGET_TRAILERS, .key = T(":path"), VAL("/")}, .status = A, .text = "a pseudo-header, which can only be set"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":status"), VAL("200")}, .status = A, .text = "a pseudo-header that cannot be set"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":protocol"), VAL("x")}, .status = A, .text = "a pseudo-header that cannot be set"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":method"), VAL("G T")}, .status = A, .text = "a bad :method"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":method"), VAL("")}, .status = A, .text = "a bad :method"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":scheme"), VAL("ftp")}, .status = A, .text = "a bad :scheme"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":authority"), VAL("a/b")}, .status = A, .text = "a bad :authority"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":authority"), VAL("")}, .status = A, .text = "a bad :authority"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":path"), VAL("x")}, .status = A, .text = "a :path that does not begin with /"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":path"), VAL("")}, .status = A, .text = "a :path that does not begin with /"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":path"), VAL("/a b")}, .status = A, .text = "a byte in :path"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":path"), VAL("/a#b")}, .status = A, .text = "a byte in :path"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":path"), VAL("/\xc3\xa9")}, .status = A, .text = "a byte in :path"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":path"), VAL("/")}, .status = A, .text = "a pseudo-header that the message cannot have"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":status"), VAL("199")}, .status = A, .text = "a :status that is not 200 to 599"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":status"), VAL("600")}, .status = A, .text = "a :status that is not 200 to 599"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":status"), VAL("20")}, .status = A, .text = "a :status that is not 200 to 599"},
    {LINE, .at = SH, .op = {.kind = PXG_OP_HEADER_SET, .key = T(":status"), VAL("2x0")}, .status = A, .text = "a :status that is not 200 to 599"},
    /* Indices: the view has 5 fields, the first two are pseudo-headers, the last one is the host's. */
    {LINE, .at = RH, .op = {.kind = PXG_OP_SET_AT, .u0 = 5, VAL("1")}, .late = true, .status = A, .text = "found index 5, expected one below the view's count"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_DELETE_AT, .u0 = UINT64_MAX}, .late = true, .status = A, .text = "expected one below the view's count"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_DELETE_AT, .u0 = 1}, .late = true, .status = A, .text = "on `:path`: found a pseudo-header, which cannot be removed"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_SET_AT, .u0 = 1, VAL("x")}, .late = true, .status = A, .text = "on `:path`: found a :path that does not begin with /"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_SET_AT, .u0 = 4, VAL("x")}, .late = true, .status = A, .text = "on `host`: found a field that the host owns"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_DELETE_AT, .u0 = 4}, .late = true, .status = A, .text = "on `host`: found a field that the host owns"},
    {LINE, .at = RT, .op = {.kind = PXG_OP_DELETE_AT, .target = PXG_TARGET_TRAILERS, .u0 = 1}, .late = true, .status = A, .text = "found index 1"},
    /* Too late, or without the feature: skipped; with MUST a failure. */
    {LINE, .at = RB, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), VAL("1")}, .skipped = true},
    {LINE, .at = RB, .op = {.kind = PXG_OP_HEADER_SET, MUST, .key = T("x"), VAL("1")}, .late = true, .status = STATE, .text = "the headers have left this place [PXG-HDR-011]"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_SET_AT, .u0 = 99, VAL("1")}, .skipped = true},
    {LINE, .at = RT, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), VAL("1")}, .skipped = true},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, .target = PXG_TARGET_TRAILERS, .key = T("x"), VAL("1")}, .skipped = true},
    {LINE, .at = RH, .op = {.kind = PXG_OP_HEADER_SET, MUST, .target = PXG_TARGET_TRAILERS, .key = T("x"), VAL("1")}, .late = true, .status = STATE, .text = "trailers are not to be changed here [PXG-TRL-001]"},
    {LINE, .at = RT, .op = {.kind = PXG_OP_HEADER_SET, .target = PXG_TARGET_TRAILERS, .key = T("x"), VAL("1")}, WITHOUT(TRAILERS_OUT_REQUEST), .skipped = true},
    {LINE, .at = ST, .op = {.kind = PXG_OP_HEADER_SET, MUST, .target = PXG_TARGET_TRAILERS, .key = T("x"), VAL("1")}, WITHOUT(TRAILERS_OUT_RESPONSE), .late = true, .status = STATE, .text = "the feature TRAILERS_OUT is clear"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METRIC, .target = 1}, .skipped = true},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METRIC, MUST, .target = 1}, .late = true, .status = STATE, .text = "the metric is unknown [PXG-OBS-003]"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .key = T("k"), VAL("v")}, WITHOUT(METADATA), .skipped = true},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, MUST, .key = T("k"), VAL("v")}, WITHOUT(METADATA), .status = U, .text = "with MUST: expected the feature METADATA"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("blue")}, WITHOUT(ROUTE), .skipped = true},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, MUST, .key = T("cluster"), VAL("blue")}, WITHOUT(ROUTE), .status = U, .text = "with MUST: expected the feature ROUTE"},
    /* METADATA_SET. */
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .u0 = 2, .key = T("k"), VAL("v")}, .status = A, .text = "found a namespace longer than key"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .u0 = 1, .key = T("n"), VAL("v")}, .status = A, .text = "a namespace or key that is not a word of 16.5"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .u0 = 3, .key = T("n.nk"), VAL("v")}, .status = A, .text = "a namespace or key that is not a word of 16.5"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .key = T("k k"), VAL("v")}, .status = A, .text = "a namespace or key that is not a word of 16.5"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .u0 = 5, .key = T("otherk"), VAL("v")}, .status = A, .text = "found the namespace other, expected a grant of the operator [PXG-CHN-003]"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .target = 1, .key = T("k"), VAL("v")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .key = T("k"), .val = {{NULL, 0, PXG_STR_ABSENT}, NULL, 0}}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_METADATA_SET, .key = T("k"), .val = {{big, sizeof big, 0}, NULL, 0}}, .status = PXG_E_LIMIT, .text = "found 65537 bytes, expected at most 64 KiB"},
    /* ROUTE. */
    {LINE, .at = SH, .op = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("blue")}, .status = A, .text = "found in response_headers, where it is not legal"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("blue")}, .status = A, .text = "found in request_body, where it is not legal"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .u0 = 1, .key = T("cluster"), VAL("blue")}, .status = A, .text = "a member that it does not use"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .key = T("host"), VAL("blue")}, .status = A, .text = "expected cluster or recompute"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .key = T("recompute"), VAL("blue")}, .status = A, .text = "found a value, expected none"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("")}, .status = A, .text = "a cluster that the operator did not allow"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("green")}, .status = A, .text = "a cluster that the operator did not allow"},
    {LINE, .at = RH, .op = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("red")}, .late = true, .status = A, .text = "a cluster that does not exist"},
    /* Bodies. */
    {LINE, .at = RB, .op = {.kind = PXG_OP_PASS, .u0 = 5}, .late = true, .status = A, .text = "found 5 bytes, expected at most 4 of the view [PXG-BODY-006]"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_DROP, .u0 = UINT64_MAX}, .late = true, .status = A, .text = "of the view [PXG-BODY-006]"},
    {LINE, .at = RB, .op = {.kind = PXG_OP_PASS, .u0 = 1}, .r = {.action = PXG_ACT_MORE}, WITHOUT(PARTIAL_RELEASE), .status = U, .text = "expected the feature PARTIAL_RELEASE"},
    {LINE, .at = RB, .held = true, .op = {.kind = PXG_OP_PASS, .u0 = 1}, .r = {.action = PXG_ACT_MORE}, .status = A, .text = "found with MORE while the headers are held [PXG-BODY-013]"},
    {LINE, .at = RB, .held = true, .op = {.kind = PXG_OP_INJECT, VAL("x")}, .r = {.action = PXG_ACT_MORE}, .status = A, .text = "found with MORE while the headers are held [PXG-BODY-013]"},
    {LINE, .at = RB, .mode = PXG_BODY_OBSERVE, .op = {.kind = PXG_OP_DROP, .u0 = 1}, .status = A, .text = "found in OBSERVE [PXG-BODY-007]"},
    {LINE, .at = RB, .mode = PXG_BODY_OBSERVE, .op = {.kind = PXG_OP_HEADER_SET, .key = T("x"), VAL("1")}, .status = A, .text = "found in OBSERVE [PXG-BODY-007]"},
    {LINE, .at = RB, .mode = PXG_BODY_OBSERVE, .r = {.action = PXG_ACT_PENDING}, .status = STATE, .text = "PENDING: found in OBSERVE [PXG-BODY-007]"},
    {LINE, .at = RB, .mode = PXG_BODY_OBSERVE, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200}, .status = STATE, .text = "REPLY: found in OBSERVE [PXG-BODY-007]"},
    {LINE, .at = RB, .mode = PXG_BODY_OBSERVE, .r = {.action = PXG_ACT_MORE}, .status = STATE, .text = "MORE: found in request_body, where it is not legal"},
    /* Results. */
    {LINE, .at = RH, .r = {.size = 1}, .status = A, .text = "size: found"},
    {LINE, .at = RH, .r = {.flags = 64}, .status = U, .text = "flags: found 0x40"},
    {LINE, .at = RH, .r = {.reserved0 = 1}, .status = U, .text = "reserved0: found 1"},
    {LINE, .at = RH, .r = {.unsubscribe = 1ull << 40}, .status = U, .text = "unsubscribe: found undefined bits"},
    {LINE, .at = RH, .r = {.body_mode = {5, 0}}, .status = U, .text = "body_mode[0]: found 5, expected 0 to 4"},
    {LINE, .at = RH, .r = {.body_mode = {0, 99}}, .status = U, .text = "body_mode[1]: found 99"},
    {LINE, .at = RH, .r = {.n_ops = 1}, .status = A, .text = "ops: found NULL with count 1"},
    {LINE, .at = RH, .r = {.n_ops = UINT64_MAX}, .status = A, .text = "ops: found NULL with count"},
    {LINE, .at = RH, .r = {.n_ops = (1 << 20) + 1, .ops = (const pxg_op *)(const void *)big}, .status = A, .text = "is no array [PXG-MEM-012]"},
    {LINE, .at = RH, .unset = true, .status = A, .text = "action: found 0, expected one of the six [PXG-ACT-001]"},
    {LINE, .at = RH, .r = {.action = 77}, .status = A, .text = "action: found 77, expected one of the six [PXG-ACT-001]"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .status = A, .text = "reply: found none, expected one exactly with REPLY"},
    {LINE, .at = RH, .reply = {.status = 200}, .status = A, .text = "reply: found one, expected one exactly with REPLY"},
    {LINE, .at = PXG_PHASE_LOG, .r = {.action = PXG_ACT_RESET}, .status = STATE, .text = "found 5 in log, expected CONTINUE [PXG-ACT-009]"},
    {LINE, .at = PXG_PHASE_WAKE, .r = {.action = PXG_ACT_PENDING}, .status = STATE, .text = "PENDING: found outside pend_phases [PXG-ACT-006]"},
    {LINE, .at = PXG_PHASE_WAKE, .r = {.action = PXG_ACT_MORE}, .status = STATE, .text = "MORE: found in wake, where it is not legal"},
    /* MORE: 5.4. */
    {LINE, .at = RH, .mode = PXG_BODY_SKIP, .r = {.action = PXG_ACT_MORE}, .late = true, .status = STATE, .text = "MORE: found in request_headers, where it is not legal [PXG-ACT-003]"},
    {LINE, .at = RT, .r = {.action = PXG_ACT_MORE}, .status = STATE, .text = "MORE: found in request_trailers, where it is not legal"},
    {LINE, .at = RB, .flag = PXG_EV_BODY_END, .r = {.action = PXG_ACT_MORE}, .status = STATE, .text = "MORE: found in request_body, where it is not legal"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_MORE}, WITHOUT(HOLD_REQUEST), .late = true, .status = U, .text = "MORE: expected the feature HOLD_REQUEST"},
    {LINE, .at = SH, .r = {.action = PXG_ACT_MORE}, WITHOUT(HOLD_RESPONSE), .late = true, .status = U, .text = "MORE: expected the feature HOLD_RESPONSE"},
    /* PENDING carries `user` and `pend_ns`. */
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING, .more_bytes = 1}, .status = A, .text = "PENDING: found more than user and pend_ns [PXG-ACT-008]"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING, .unsubscribe = 2}, .status = A, .text = "PENDING: found more than"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING, .body_mode = {0, 1}}, .status = A, .text = "PENDING: found more than"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING, .flags = PXG_RES_FLUSH}, .status = A, .text = "PENDING: found more than"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING, .error = T("x")}, .status = A, .text = "PENDING: found more than"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING}, .op = {.kind = PXG_OP_METRIC}, .status = A, .text = "PENDING: found more than"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_PENDING}, .reply = {.status = 200}, .status = A, .text = "PENDING: found more than"},
    /* Modes: 7.1. */
    {LINE, .at = RB, .r = {.body_mode = {PXG_BODY_WHOLE, 0}}, .late = true, .status = A, .text = "body_mode[0]: found a change from 2 to 3 that comes too late [PXG-BODY-015]"},
    {LINE, .at = SH, .r = {.body_mode = {PXG_BODY_OBSERVE, 0}}, .late = true, .status = A, .text = "body_mode[0]: found a change from 2 to 4 that comes too late"},
    {LINE, .at = RH, .r = {.body_mode = {0, PXG_BODY_WHOLE}, .unsubscribe = PXG_PHASE_BIT(SB)}, .late = true, .status = A, .text = "body_mode[1]: found 3 without its phase subscribed"},
    {LINE, .at = RH, .r = {.body_mode = {0, PXG_BODY_WHOLE}}, WITHOUT(BODY_WHOLE_RESPONSE), .late = true, .status = U, .text = "body_mode[1]: found 3, expected the feature BODY_WHOLE_RESPONSE"},
    {LINE, .at = RB, .r = {.flags = PXG_RES_RESIZES}, .late = true, .status = A, .text = "RESIZES: found where the headers are not held"},
    {LINE, .at = SH, .r = {.flags = PXG_RES_RESIZES}, WITHOUT(RESIZE_RESPONSE), .late = true, .status = A, .text = "RESIZES: found where the headers are not held, or without the feature"},
    /* Replies. */
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.size = 1, .status = 200}, .status = A, .text = "reply.size: found"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 199}, .status = A, .text = "reply.status: found 199, expected 200 to 599 [PXG-RPL-001]"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 600}, .status = A, .text = "reply.status: found 600"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .flags = 8}, .status = U, .text = "reply.flags: found 0x8"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .flags = PXG_REPLY_OPEN}, WITHOUT(STREAM_REPLY), .status = U, .text = "found OPEN, expected the feature STREAM_REPLY"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .n_fields = 1}, .status = A, .text = "reply.fields: found NULL with count 1"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .n_trailers = 2}, .status = A, .text = "reply.trailers: found NULL with count 2"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .n_body = 3}, .status = A, .text = "reply.body: found NULL with count 3"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .n_body = 1, .body = &null_buf}, .status = A, .text = "reply.body: found NULL with length 3"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .details = {NULL, 1, 0}}, .status = A, .text = "reply.details: found NULL with length 1"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .fields = &capital, .n_fields = 1}, .status = A, .text = "reply: found a name with a byte"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .fields = &host, .n_fields = 1}, .status = A, .text = "reply: found a field that the host owns"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .fields = &pseudo, .n_fields = 1}, .status = A, .text = "reply: found a pseudo-header, which can only be set"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .fields = &absent, .n_fields = 1}, .status = A, .text = "reply.fields: found an ABSENT string"},
    {LINE, .at = RH, .r = {.action = PXG_ACT_REPLY}, .reply = {.status = 200, .fields = &good, .n_fields = 1, .trailers = &pseudo, .n_trailers = 1}, .status = A, .text = "reply: found a pseudo-header"},
};
/* clang-format on */

static const row *now;
static bool used, completes;

static void answer(const row *w, pxg_result *o, pxg_op *ops, pxg_reply *reply) {
  uint32_t size = o->size;
  o->action = w->unset ? PXG_ACT_UNSET : w->r.action ? w->r.action : PXG_ACT_CONTINUE;
  o->size = w->r.size ? size - w->r.size : size;
  o->flags = w->r.flags;
  o->reserved0 = w->r.reserved0;
  o->unsubscribe = w->r.unsubscribe;
  memcpy(o->body_mode, w->r.body_mode, sizeof o->body_mode);
  o->more_bytes = w->r.more_bytes;
  o->error = w->r.error;
  o->ops = w->r.ops;
  o->n_ops = w->r.n_ops;
  if (w->op.kind) *ops = w->op, o->ops = ops, o->n_ops = 1;
  if (!w->reply.status) return;
  *reply = w->reply;
  reply->size = (uint32_t)sizeof *reply - w->reply.size;
  o->reply = reply;
}

static void decide(const pxg_event *ev, pxg_result *o) {
  static pxg_reply r;
  if (now->held && ev->phase == RH) o->action = PXG_ACT_MORE, o->more_bytes = 4;
  if (ev->phase != now->at || used || (now->flag && !(ev->flags & now->flag))) return;
  used = true;
  if (completes)
    o->action = PXG_ACT_PENDING;
  else
    answer(now, o, o->scratch_ops, &r);
}

static void exchange(void) {
  head(REQ, false);
  bytes(REQ, "abcd");
  end(REQ, true);
  head(RSP, false);
  bytes(RSP, "efgh");
  end(RSP, true);
}

static void world(const row *w) {
  static const char *const allowed[] = {"blue", "red"};
  reset_world();
  quiet();
  now = w;
  used = false;
  pxg_config *c = &configs[1];
  c->policy.fail_open = true;
  c->policy.clusters = allowed, c->policy.n_clusters = 2;
  c->features[0] &= ~w->without;
  c->body_mode[REQ] = w->mode ? w->mode : PXG_BODY_STREAM;
  c->body_mode[RSP] = PXG_BODY_STREAM;
  for (int p = RH; p <= PXG_PHASE_WAKE; p++) on[1][p] = decide;
  field(REQ, false, "host", "h");
  field(REQ, true, "t", "1");
  field(RSP, false, "x-r", "1");
  field(RSP, true, "t", "1");
  begin(1);
}

/* Everything passes as it came: the guest is bypassed, or the operation was skipped. */
static void ends(const row *w, bool fails) {
  pxg_reason reason = w->status == PXG_E_LIMIT ? PXG_R_LIMIT : PXG_R_INVALID;
  CHECK(used, "line %d: the event did not come: %s", w->line, trace);
  CHECK(!strcmp(out, "rhead rend+ shead send+ ") && !strcmp(body[REQ], "abcd") && !strcmp(body[RSP], "efgh"),
        "line %d: found %s, %s, %s", w->line, out, body[REQ], body[RSP]);
  CHECK(!strcmp(fields_of(REQ, false), ":method=GET,:path=/,x-a=1,x-a=2,host=h"), "line %d: %s", w->line,
        fields_of(REQ, false));
  CHECK(!strcmp(fields_of(RSP, false), ":status=200,x-r=1"), "line %d: %s", w->line, fields_of(RSP, false));
  CHECK(!strcmp(fields_of(REQ, true), "t=1") && !strcmp(fields_of(RSP, true), "t=1"), "line %d: trailers", w->line);
  CHECK(!pxg_stream_cluster(s, NULL), "line %d: a cluster", w->line);
  done(PXG_END_COMPLETE);
  CHECK(counters.failures[reason] == fails, "line %d: found %d failures for this reason: %s", w->line,
        (int)counters.failures[reason], said);
  CHECK(counters.skipped == w->skipped, "line %d: found %d operations skipped", w->line, (int)counters.skipped);
  CHECK(released == (w->op.val.release != NULL), "line %d: released %d times", w->line, released);
  /* An action that `complete` never takes has a text of its own. */
  CHECK(!w->text || strstr(said, w->text) ||
            (completes && strstr(said, "complete is answered") && strstr(said, ": action: found")),
        "line %d: found %s, expected %s", w->line, said, w->text);
}

static void by_event(const row *w) {
  completes = false;
  world(w);
  exchange();
  if (w->at == PXG_PHASE_WAKE) CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "line %d: wake", w->line);
  mail();
  if (w->at == PXG_PHASE_LOG) {
    pxg_stream_finish(s, PXG_END_COMPLETE);
    CHECK(counters.failures[PXG_R_INVALID] == 1, "line %d: LOG", w->line);
  }
  ends(w, !w->skipped);
}

static void by_completion(const row *w) {
  pxg_result r = {.size = sizeof r};
  pxg_op op;
  pxg_reply reply;
  completes = true;
  world(w);
  exchange();
  answer(w, &r, &op, &reply);
  uint64_t token = tokens[1];
  int32_t status = pxg_complete(77, token, &r), expected = w->late                    ? PXG_OK
                                                           : r.action > PXG_ACT_ERROR ? STATE
                                                                                      : w->status;
  CHECK(status == expected, "line %d: complete is answered %d, expected %d", w->line, status, expected);
  tokens[1] = token;
  if (status != PXG_OK) CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_OK, "line %d: the token has died", w->line);
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_E_STALE, "line %d: completed twice", w->line);
  mail();
  ends(w, w->late);
}

/* ---- by `apply` --------------------------------------------------------------------------------------------------- */

static void by_apply(void) {
  static const pxg_op header = {.kind = PXG_OP_HEADER_SET, .key = T("x"), VAL("1")}, pass = {.kind = PXG_OP_PASS},
                      write = {.kind = PXG_OP_BODY_WRITE, .target = 1}, route = {.kind = PXG_OP_ROUTE, .key = T("x")},
                      red = {.kind = PXG_OP_ROUTE, .key = T("cluster"), VAL("red")};
  static const pxg_reply reply = {.size = sizeof reply, .status = 200};
  static const struct {
    int line;
    pxg_result r;
    int32_t status;
  } all[] = {{__LINE__, {.action = PXG_ACT_UNSET}, A},
             {__LINE__, {.action = PXG_ACT_PENDING}, STATE},
             {__LINE__, {.action = PXG_ACT_MORE}, STATE},
             {__LINE__, {.action = PXG_ACT_ERROR}, STATE},
             {__LINE__, {.action = 99}, STATE},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .unsubscribe = 2}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .body_mode = {0, 1}}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .more_bytes = 1}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .flags = PXG_RES_RESIZES}, A},
             {__LINE__, {.action = PXG_ACT_REPLY}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .reply = &reply}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .ops = &header, .n_ops = 1}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .ops = &pass, .n_ops = 1}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .ops = &write, .n_ops = 1}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .ops = &route, .n_ops = 1}, A},
             {__LINE__, {.action = PXG_ACT_CONTINUE, .n_ops = 1}, A}};
  static const row quiet_row = {.at = RH};
  world(&quiet_row);
  head(REQ, false);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    pxg_result r = all[i].r;
    r.size = sizeof r;
    int32_t status = pxg_apply(77, handles[1], &r);
    CHECK(status == all[i].status, "line %d: apply is answered %d, expected %d", all[i].line, status, all[i].status);
  }
  pxg_result bigger[2] = {{.size = sizeof bigger, .action = PXG_ACT_CONTINUE}, {.size = 1}};
  CHECK(pxg_apply(77, handles[1], bigger) == U, "a tail that is not zero");
  CHECK(pxg_apply(77, handles[1], NULL) == A, "no result");
  pxg_reply longer[2] = {{.size = sizeof longer, .status = 200}, {.size = 1}};
  pxg_result with_longer = {.size = sizeof with_longer, .action = PXG_ACT_REPLY, .reply = longer};
  CHECK(pxg_apply(77, handles[1], &with_longer) == U, "a reply with a tail that is not zero");
  bigger[1].size = 0;
  CHECK(pxg_apply(77, handles[1], bigger) == PXG_OK, "a longer result of a later version");
  CHECK(!counters.failures[PXG_R_INVALID], "a refusal is no failure");
  /* What only the stream tells is a failure when its turn comes. */
  pxg_result late = {.size = sizeof late, .action = PXG_ACT_CONTINUE, .ops = &red, .n_ops = 1};
  CHECK(pxg_apply(77, handles[1], &late) == PXG_OK, "a cluster that does not exist");
  mail();
  CHECK(counters.failures[PXG_R_INVALID] == 1, "not counted");
  HAS(said, "a cluster that does not exist");
  CHECK(pxg_apply(77, handles[1], &late) == PXG_E_STALE, "after a failure");
  done(PXG_END_COMPLETE);
}

/* ---- PXG-MEM-012: what begins in lent memory and ends outside of it ------------------------------------------------- */

static int which;

/* Whatever it points to is at the end of `scratch`, and whole where `which` is even. */
static void leave_scratch(const pxg_event *ev, pxg_result *o) {
  bool over = which % 2;
  uint8_t *last = o->scratch + o->scratch_cap;
  memset(o->scratch, 'x', o->scratch_cap);
  pxg_op *op = o->scratch_ops;
  (void)ev;
  *op = (pxg_op){.kind = PXG_OP_HEADER_SET, .key = T("x-k"), VAL("v")};
  o->ops = op;
  o->n_ops = 1;
  switch (which / 2) {
  case 0: op->key = (pxg_str){last - 2, 2 + over, 0}; break;
  case 1: op->val.bytes = (pxg_str){last - 2, 2 + over, 0}; break;
  case 2: op->key = (pxg_str){last - 1, over ? UINT32_MAX : 1, 0}; break;
  case 3: /* The operations themselves. */
    memset(op, 0, o->scratch_ops_cap * sizeof *op);
    for (uint64_t i = 0; i < o->scratch_ops_cap; i++) op[i].kind = 999;
    o->n_ops = o->scratch_ops_cap + over;
    break;
  default: {
    static pxg_reply mine;
    pxg_reply *r = which / 2 == 4 ? (pxg_reply *)(void *)(last - sizeof *r + 16 * over) : &mine;
    *(which / 2 == 4 && over ? &mine : r) = (pxg_reply){.size = sizeof *r, .status = 201};
    o->n_ops = 0;
    o->action = PXG_ACT_REPLY;
    o->reply = r;
    pxg_field *f = (pxg_field *)(void *)(last - sizeof *f);
    pxg_buf *b = (pxg_buf *)(void *)(last - sizeof *b);
    if (which / 2 == 5) *f = (pxg_field){T("x-f"), T("1")}, r->fields = f, r->n_fields = 1 + over;
    if (which / 2 == 6) *b = (pxg_buf){T("y"), NULL, 0}, r->body = b, r->n_body = 1 + over;
    if (which / 2 == 7) r->details = (pxg_str){last - 3, 3 + over, 0};
    if (which / 2 == 8) *f = (pxg_field){T("x-f"), T("1")}, r->trailers = f, r->n_trailers = 1 + over;
    break;
  }
  case 9: o->action = PXG_ACT_ERROR, o->error = (pxg_str){last - 3, 3 + over, 0}; break;
  }
}

static void lent(void) {
  for (which = 0; which < 20; which++) {
    reset_world();
    quiet();
    on[1][RH] = leave_scratch;
    begin(1);
    head(REQ, true);
    if (which % 2) {
      CHECK(counters.failures[PXG_R_INVALID] == 1, "%d: %s", which, said);
      HAS(said, "leaves the lent scratch");
      HAS(said, "[PXG-MEM-012]");
    } else {
      CHECK(!counters.failures[PXG_R_INVALID], "%d: %s", which, said);
    }
    done(PXG_END_COMPLETE);
  }
}

int main(void) {
  start();
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    const row *w = &rows[i];
    bool pends = w->at <= ST && w->mode != PXG_BODY_OBSERVE && w->r.action != PXG_ACT_PENDING;
    by_event(w);
    if (pends) by_completion(w);
  }
  by_apply();
  lent();
  pxg_worker_free(loop);
  return finish("illegal");
}
