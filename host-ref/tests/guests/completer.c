/* REQUEST_HEADERS pends. WAKE answers the last token for arg 0; else it completes the token in `arg` from another
 * thread and answers the status, after LOG with arg 2 by a reply. LOG answers how often something was cancelled, with
 * arg 1 released. */
#include "guest.h"
#include <pthread.h>

static uint64_t token;
static int replies;

static void *complete(void *arg) {
  pxg_result r = result(PXG_ACT_CONTINUE);
  if (replies) {
    pxg_buf body = owned("reply");
    pxg_reply reply = {.size = sizeof reply, .status = 403, .body = &body, .n_body = 1};
    r.action = PXG_ACT_REPLY;
    r.reply = &reply;
    return (void *)(intptr_t)host->complete(host->ctx, *(uint64_t *)arg, &r);
  }
  r.ops = &(pxg_op){.kind = PXG_OP_HEADER_SET, .key = LIT("x-by"), .val = owned("completer")};
  r.n_ops = 1;
  return (void *)(intptr_t)host->complete(host->ctx, *(uint64_t *)arg, &r);
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_REQUEST_HEADERS) {
    out->action = PXG_ACT_PENDING;
    token = ev->token;
  } else if (ev->phase == PXG_PHASE_LOG) {
    out->user = ev->arg ? released : cancelled;
    if (ev->arg == 2) replies = 1;
  } else if (ev->arg == 0) {
    out->user = token;
  } else {
    pthread_t t;
    void *status;
    uint64_t wanted = ev->arg;
    pthread_create(&t, NULL, complete, &wanted);
    pthread_join(t, &status);
    out->user = (uint64_t)(intptr_t)status;
  }
}

GUEST(config_new, event)
