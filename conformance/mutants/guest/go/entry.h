#ifndef ENTRY_H
#define ENTRY_H
#ifndef PXG_NO_PROTOTYPES
#define PXG_NO_PROTOTYPES
#endif
#include <stdlib.h>

#include "proxy_golang.h"

uintptr_t release_in_c(void);
uintptr_t release_in_go(void);
int32_t call_complete(uint64_t ctx, uint64_t token);
#endif
