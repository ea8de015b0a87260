/* SPDX-License-Identifier: Apache-2.0 */

/* A shared object that uses the entry's name and does not define it. */

#include <stdint.h>

int32_t pxg_guest_init_v1(const void *host, void *out);

__attribute__((visibility("default"))) int32_t use(void) { return pxg_guest_init_v1(0, 0); }
