#include "guest.h"
GUEST(config_new, NULL, out->on_cancel = NULL)
