/* Init refuses the host's version, and says why. */
#include "guest.h"
GUEST(config_new, event_continue, {
  say(PXG_LOG_INFO, "looking at the host");
  say(PXG_LOG_ERROR, "this guest was made for the draft of\nversion 1");
  return PXG_E_VERSION;
})
