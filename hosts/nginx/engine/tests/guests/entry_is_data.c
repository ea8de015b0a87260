/* SPDX-License-Identifier: Apache-2.0 */

/* A shared object whose entry is no function. */

__attribute__((visibility("default"))) int pxg_guest_init_v1 = 1;
