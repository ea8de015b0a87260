/* One operation of each kind, in scratch, with strings that point into the view. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  pxg_op *op = out->scratch_ops;
  pxg_buf value = {ev->fields[0].value, NULL, 0};
  memcpy(out->scratch, "scratch", 7);
  *op++ = (pxg_op){.kind = PXG_OP_HEADER_SET, .flags = PXG_OPF_MUST, .key = ev->fields[0].name, .val = value};
  *op++ = (pxg_op){.kind = PXG_OP_HEADER_ADD,
                   .target = PXG_TARGET_TRAILERS,
                   .key = LIT("t"),
                   .val = {{out->scratch, 7, PXG_STR_SENSITIVE}, NULL, 0}};
  *op++ = (pxg_op){.kind = PXG_OP_HEADER_DELETE, .key = LIT("gone")};
  *op++ = (pxg_op){.kind = PXG_OP_SET_AT, .u0 = 3, .val = borrowed("")};
  *op++ = (pxg_op){.kind = PXG_OP_DELETE_AT, .u0 = 4};
  *op++ = (pxg_op){.kind = PXG_OP_PASS, .u0 = 5};
  *op++ = (pxg_op){.kind = PXG_OP_DROP, .u0 = 6};
  *op++ = (pxg_op){.kind = PXG_OP_INJECT, .val = borrowed("in")};
  *op++ = (pxg_op){
      .kind = PXG_OP_BODY_WRITE, .flags = PXG_OPF_END, .val = {{(const uint8_t *)"w", 1, PXG_BUF_STATIC}, NULL, 0}};
  *op++ = (pxg_op){.kind = PXG_OP_METADATA_SET, .u0 = 2, .key = LIT("nskey"), .val = borrowed("v")};
  *op++ = (pxg_op){.kind = PXG_OP_METRIC, .target = 9, .u0 = (uint64_t)-3};
  *op++ = (pxg_op){.kind = PXG_OP_ROUTE, .key = LIT("cluster"), .val = borrowed("blue")};
  *op++ = (pxg_op){.kind = PXG_OP_ROUTE, .key = LIT("recompute")};
  *op++ = (pxg_op){.kind = 4000};
  out->ops = out->scratch_ops;
  out->n_ops = (uint64_t)(op - out->scratch_ops);
  out->action = PXG_ACT_MORE;
  out->flags = PXG_RES_RESIZES | PXG_RES_FLUSH;
  out->user = ev->user + 1;
  out->unsubscribe = PXG_PHASE_BIT(PXG_PHASE_LOG);
  out->body_mode[1] = PXG_BODY_SKIP;
  out->more_bytes = 11;
  out->pend_ns = 12;
  out->error = LIT("why");
}

GUEST(config_new, event)
