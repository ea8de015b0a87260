/* What the benchmarks call. `empty` decides nothing but CONTINUE; `policy` reads 20 fields and makes 3 changes in scratch;
 * `reads` reads and changes nothing; `waits` pends, and completes with 3 changes when the batch ends. The filter is
 * chosen by the configuration's bytes. */
#include "guest.h"

static uint64_t token;

static int32_t configure(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  int32_t status = config_new(ctx, in, out);
  out->config = out->config << 8 | in->bytes.ptr[0];
  if (in->bytes.ptr[0] != 'w') out->pend_phases = 0;
  return status;
}

static int is(const pxg_str *s, const char *text, uint32_t len) {
  return s->len == len && memcmp(s->ptr, text, len) == 0;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  uint8_t which = (uint8_t)ev->config;
  out->action = PXG_ACT_CONTINUE;
  if (which == 'e') return;
  if (which == 'w') {
    out->action = PXG_ACT_PENDING;
    token = ev->token;
    return;
  }
  const pxg_str *agent = NULL, *id = NULL;
  for (uint64_t i = 0; i < ev->n_fields; i++) {
    const pxg_field *f = &ev->fields[i];
    if (is(&f->name, "user-agent", 10)) agent = &f->value;
    if (is(&f->name, "x-request-id", 12)) id = &f->value;
  }
  if (!agent || !id || which == 'r') return;
  pxg_op *op = out->scratch_ops;
  op[0] = (pxg_op){.kind = PXG_OP_HEADER_SET, .key = LIT("x-agent"), .val = {*agent, NULL, 0}};
  op[1] = (pxg_op){.kind = PXG_OP_HEADER_ADD, .key = LIT("x-trace"), .val = {*id, NULL, 0}};
  op[2] = (pxg_op){.kind = PXG_OP_HEADER_DELETE, .key = LIT("x-internal")};
  out->ops = op;
  out->n_ops = 3;
}

static void batch_end(uint64_t ctx, uint32_t worker) {
  (void)ctx, (void)worker;
  pxg_op ops[] = {
      {.kind = PXG_OP_HEADER_SET, .key = LIT("x-agent"), .val = borrowed("Mozilla/5.0 (X11; Linux x86_64)")},
      {.kind = PXG_OP_HEADER_ADD, .key = LIT("x-trace"), .val = borrowed("7f3c2f6e-1f0b-4a58-9a0e-8a1d3a4c9b11")},
      {.kind = PXG_OP_HEADER_DELETE, .key = LIT("x-internal")},
  };
  pxg_result r = result(PXG_ACT_CONTINUE);
  r.ops = ops;
  r.n_ops = 3;
  host->complete(host->ctx, token, &r);
}

GUEST(configure, event, out->on_batch_end = batch_end)
