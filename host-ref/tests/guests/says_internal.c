/* Init fails at first and works when it is tried again. */
#include "guest.h"
static int tries;
GUEST(config_new, event_continue, {
  if (tries++ == 0) {
    say(PXG_LOG_ERROR, "no rules file");
    return PXG_E_INTERNAL;
  }
})
