/* Declares what its configuration's bytes say; most of it is wrong. WAKE answers how many
 * configurations were dropped, with arg 1 whether a parent was while it had children. */
#include "guest.h"

#include <sched.h>

#define REQ PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS)
#define BODY PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY)

static uint64_t children, misordered;
static pxg_attr_want wants[2];
static pxg_projection fields[1];

static int32_t configure(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  char text[64] = {0};
  memcpy(text, in->bytes.ptr, in->bytes.len < 63 ? in->bytes.len : 63);
#define CASE(name) if (!strcmp(text, name))
  int32_t status = config_new(ctx, in, out);
  CASE("refused") {
    /* In scratch, as an SDK would. */
    memcpy(out->scratch, "line 3: unknown key \"colour\"\n", 29);
    out->error = (pxg_str){out->scratch, 29, 0};
    return PXG_E_ARG;
  }
  CASE("refused-silently") return -4711;
  CASE("refused-beyond-scratch") {
    out->error = (pxg_str){out->scratch + out->scratch_cap - 4, 100, 0};
    return PXG_E_ARG;
  }
  CASE("zero") out->config = 0;
  CASE("same") out->config = 1000000;
  CASE("size") out->size += 8;
  CASE("flag") out->flags = 1u << 30;
  CASE("orphan") out->flags = PXG_CFG_ORPHAN;
  CASE("phase-0") out->subscribe = 1;
  CASE("phase-40") out->subscribe = 1ull << 40;
  CASE("l4") out->subscribe = PXG_PHASE_BIT(PXG_PHASE_L4_OPEN);
  CASE("pend-unsubscribed") out->pend_phases = BODY;
  CASE("pend-log") {
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_LOG);
    out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_LOG);
  }
  CASE("pend-feature") {
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_RESPONSE_TRAILERS);
    out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_RESPONSE_TRAILERS);
  }
  CASE("mode-unsubscribed") out->body_mode[0] = PXG_BODY_WHOLE;
  CASE("mode-unknown") out->body_mode[1] = 9;
  CASE("mode-feature") {
    out->subscribe |= BODY;
    out->body_mode[0] = PXG_BODY_OBSERVE;
  }
  CASE("whole") {
    out->subscribe |= BODY;
    out->body_mode[0] = PXG_BODY_WHOLE;
    out->max_body[0] = 1ull << 40;
    out->pend_ns = UINT64_MAX;
  }
  CASE("attrs") {
    wants[0] = (pxg_attr_want){LIT("request.id"), REQ, PXG_ATTR_REQUIRED, 0};
    wants[1] = (pxg_attr_want){LIT("metadata.auth.user.name"), REQ, 0, 0};
    out->attrs = wants;
    out->n_attrs = 2;
    fields[0] = (pxg_projection){LIT(":path"), REQ};
    out->projection = fields;
    out->n_projection = 1;
  }
  CASE("attr-required") {
    wants[0] = (pxg_attr_want){LIT("moon.phase"), REQ, PXG_ATTR_REQUIRED, 0};
    out->attrs = wants;
    out->n_attrs = 1;
  }
  CASE("attr-reserved") {
    wants[0] = (pxg_attr_want){LIT("request.id"), REQ, 0, 5};
    out->attrs = wants;
    out->n_attrs = 1;
  }
  CASE("attr-null") out->n_attrs = 1;
  CASE("attr-many") {
    out->attrs = wants;
    out->n_attrs = 1000;
  }
  CASE("projection-case") {
    fields[0] = (pxg_projection){LIT("Content-Type"), REQ};
    out->projection = fields;
    out->n_projection = 1;
  }
  CASE("scratch") {
    /* 4096 bytes at least, 16-aligned, and more of it, zeroed. */
    uint8_t *more = host->scratch_more(host->ctx, 65536);
    int zero = more != NULL;
    for (int i = 0; zero && i < 65536; i++) zero = more[i] == 0;
    memset(out->scratch, 0xab, out->scratch_cap);
    if (out->scratch_cap < 4096 || (uintptr_t)out->scratch % 16 || (uintptr_t)more % 16 || !zero) return PXG_E_LIMIT;
    if (host->scratch_more(host->ctx, 1ull << 40)) return PXG_E_LIMIT;
  }
  CASE("overlap") {
    /* Two of these at once are one too many. */
    static atomic_int inside;
    int others = atomic_fetch_add(&inside, 1);
    for (int i = 0; i < 1000; i++) sched_yield();
    atomic_fetch_sub(&inside, 1);
    if (others) return PXG_E_THREAD;
  }
  CASE("validate") if (!(in->flags & PXG_CFG_IN_VALIDATE_ONLY)) return PXG_E_STATE;
  CASE("bytes") if (in->bytes.len != 5 || in->filter.len != 1 || in->name.len != 4) return PXG_E_ARG;
  CASE("parent") {
    if (in->parent != 2000000) return PXG_E_ARG;
    out->config += 3000000;
    children++;
  }
  CASE("base") out->config = 2000000;
  return status;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  out->user = ev->arg ? misordered : dropped;
}

static void drop(uint64_t ctx, uint64_t config) {
  config_drop(ctx, config);
  if (config >= 3000000) children--;
  if (config == 2000000 && children) misordered = 1;
}

GUEST(configure, event, out->on_config_drop = drop)
