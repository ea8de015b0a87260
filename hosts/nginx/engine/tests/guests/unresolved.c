/* SPDX-License-Identifier: Apache-2.0 */

/* A guest that was not linked with all that it uses. */

#include "proxy_golang.h"

int32_t nobody_defines_this(void);

int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  (void)host, (void)out;
  return nobody_defines_this();
}
