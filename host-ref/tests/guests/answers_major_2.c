/* OK, but for another major version. */
#include "guest.h"
GUEST(config_new, event_continue, out->major = 2)
