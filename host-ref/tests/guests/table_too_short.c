/* The table ends before on_event. */
#include "guest.h"
GUEST(config_new, event_continue, out->size = 152)
