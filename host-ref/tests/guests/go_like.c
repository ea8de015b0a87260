/* Has the sections of a Go library, so that the loader takes it for one. */
#include "guest.h"
__attribute__((section(".go.buildinfo"), used)) static const char buildinfo[] = "\xff Go buildinf:";
GUEST(config_new, event_continue)
