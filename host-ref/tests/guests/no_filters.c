#include "guest.h"
GUEST(config_new, event_continue, out->n_filters = 0)
