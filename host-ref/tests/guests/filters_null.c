#include "guest.h"
GUEST(config_new, event_continue, out->filters = NULL)
