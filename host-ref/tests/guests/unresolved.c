/* Needs a function of its host's executable. */
#include "guest.h"
extern int only_in_the_proxy(void);
GUEST(config_new, event_continue, if (only_in_the_proxy()) return PXG_E_INTERNAL)
