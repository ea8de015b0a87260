/* Requires what some places of the host's configuration do not have. */
#include "guest.h"
GUEST(config_new, event_continue, out->required[0] = 1ull << PXG_F_PEND_REQUEST_HEADERS)
