/* SPDX-License-Identifier: Apache-2.0 */

/* What the parts behind pxg_host.h share among themselves. */

#ifndef PXG_LOADING_H
#define PXG_LOADING_H

#include "pxg_host.h"

#define PXG_ALL_HTTP_PHASES 0x1feull
#define PXG_ALL_L4_PHASES 0xf0000ull

/* The lock of config-thread calls. False with THREAD on a loop thread of a driver with CONFIG_THREAD, and inside a hook
 * of a guest. */
bool pxg_config_enter(pxg_error *why);
void pxg_config_leave(void);
/* Inside the lock. */
pxg_guest_lib *pxg_guest_load_inside(const char *path, pxg_error *why);

/* What the guest says on this thread until the next call is kept in `to`, escaped, the last text only; null ends it. A
 * refusal carries it (2.3). */
void pxg_log_capture(char *to, size_t room);
void pxg_guest_log(uint64_t ctx, uint32_t level, const uint8_t *ptr, uint64_t len);

/* The length of a well-formed UTF-8 sequence at `p` that a terminal shows, or 0; control bytes of ASCII have 1. */
size_t pxg_utf8(const uint8_t *p, uint64_t n);

/* [any-thread] Waits until no caller of the host functions may hold a configuration, or a worker, that was retired
 * before. */
void pxg_visitors_wait(void);

/* pxg_declared.c: 4.1 on what a guest declared, in the order in which 1.5 puts the codes. */
bool pxg_declared_ok(const pxg_config *c, const pxg_config_out *o, const pxg_call *lent, pxg_error *why);
bool pxg_declared_take(pxg_config *c, const pxg_config_out *o); /* Copies; false for want of memory. */

extern const pxg_metrics_v1 pxg_metrics_table;
void pxg_host_zone(pxg_zone *zone);          /* Another one than the driver's; before the first library. */
uint32_t pxg_zone_series(const pxg_zone *z); /* Most series; ids are 1 to this. */

char *pxg_text_copy(const void *text, size_t len); /* With a NUL behind; null for want of memory. */

#endif
