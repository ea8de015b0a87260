/* Answers which entries of the host's table are NULL: bit 0 complete, 1 apply, 2 wake, 3 log, 4 scratch_more, 5 get_ext, 6 page;
 * and in the next byte the number of workers. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx, (void)ev;
  out->action = PXG_ACT_CONTINUE;
  out->user = !host->complete | !host->apply << 1 | !host->wake << 2 | !host->log << 3 | !host->scratch_more << 4 |
              !host->get_ext << 5 | !host->page << 6 | host->n_workers << 8;
}

GUEST(config_new, event)
