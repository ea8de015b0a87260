#include "guest.h"
GUEST(config_new, event_continue, out->flags = 0x8001)
