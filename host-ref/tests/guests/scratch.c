/* Memory that is lent. The answer is in `user`: 1 is as it should be. */
#include "guest.h"
#include <pthread.h>

static int zeroed(const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p[i]) return 0;
  return 1;
}

static void *on_another_thread(void *arg) {
  *(int *)arg = host->scratch_more(host->ctx, 16) == NULL;
  return NULL;
}

static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
  atomic_fetch_add(&cancelled, host->scratch_more(host->ctx, 16) == NULL);
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  int ok = 0;
  out->action = PXG_ACT_CONTINUE;
  switch (ev->arg) {
  case 0: /* at least what the ABI says, 16-aligned; then filled with operations */
    ok = out->scratch_ops_cap >= 32 && out->scratch_cap >= 4096 && (uintptr_t)out->scratch % 16 == 0 &&
         (uintptr_t)out->scratch_ops % 16 == 0 && zeroed((uint8_t *)out->scratch_ops, 64 * out->scratch_ops_cap);
    for (uint64_t i = 0; i < out->scratch_ops_cap; i++) out->scratch_ops[i] = (pxg_op){.kind = 0x1111};
    memset(out->scratch, 0xee, out->scratch_cap);
    break;
  case 1: /* operations of an earlier call, nothing else */
    ok = 1;
    for (uint64_t i = 0; i < out->scratch_ops_cap; i++) {
      pxg_op want = {.kind = 0x1111};
      ok = ok && memcmp(&out->scratch_ops[i], &want, sizeof want) == 0;
    }
    break;
  case 2: { /* more: zeroed and aligned each time, until the limit of 64 KiB, not a byte beyond */
    uint8_t *a = host->scratch_more(host->ctx, 1), *b = host->scratch_more(host->ctx, 60000);
    ok = a && b && zeroed(b, 60000) && (uintptr_t)a % 16 == 0 && (uintptr_t)b % 16 == 0;
    memset(b, 0xee, 60000);
    ok = ok && !host->scratch_more(host->ctx, 65536 - 60000 - 16 + 1) &&
         host->scratch_more(host->ctx, 65536 - 60000 - 16);
    ok = ok && !host->scratch_more(host->ctx, 1);
    break;
  }
  case 3: { /* another call, another thread, another guest's ctx, no ctx */
    pthread_t t;
    int null = 0;
    pthread_create(&t, NULL, on_another_thread, &null);
    pthread_join(t, NULL);
    ok = null && !host->scratch_more(host->ctx + 1, 16) && !host->scratch_more(0, 16) &&
         host->scratch_more(host->ctx, 16);
    break;
  }
  case 4: ok = (int)cancelled; break; /* outside of on_event there was none */
  case 5: {                           /* operations in more than the lent room */
    pxg_op *ops = (pxg_op *)host->scratch_more(host->ctx, 20 * sizeof *ops);
    for (int i = 0; i < 20; i++) ops[i] = (pxg_op){.kind = PXG_OP_PASS, .u0 = (uint64_t)i};
    out->ops = ops, out->n_ops = 20, ok = 1;
    break;
  }
  }
  out->user = (uint64_t)ok;
}

GUEST(config_new, event, out->on_cancel = cancel)
