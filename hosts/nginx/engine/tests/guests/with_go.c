/* SPDX-License-Identifier: Apache-2.0 */

/* The guest of loading.c with the section that the linker of Go leaves in a library. */

#include "loading.c"

__attribute__((section(".go.buildinfo"), used)) static const char build_info[16] = "go";
