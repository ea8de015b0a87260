//! `include/layout_check.c`: the layout as assertions of the C compiler.

use proxy_golang_abi::layout::STRUCTS;

use super::Output;

const TOP: &str = r#"/* SPDX-License-Identifier: Apache-2.0
 * Generated from proxy-golang-abi by `cargo xtask gen`: do not edit.
 *
 * Compile this file with your compiler and flags: it succeeds if they lay the structs out as the ABI says.
 *   cc -std=c11 -fsyntax-only -I include include/layout_check.c */

#include <stddef.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

#if defined(__cplusplus)
#define CHECK(what, condition) static_assert(condition, what)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define CHECK(what, condition) _Static_assert(condition, what)
#else
#define CHECK_NAME2(line) layout_check_##line
#define CHECK_NAME(line) CHECK_NAME2(line)
#define CHECK(what, condition) typedef char CHECK_NAME(__LINE__)[(condition) ? 1 : -1]
#endif

#define SIZE(type, bytes) CHECK("size of " #type, sizeof(type) == (bytes))
#define MEMBER(type, member, at, bytes)                                                                 \
  CHECK(#type "." #member, offsetof(type, member) == (at) && sizeof(((type *)0)->member) == (bytes))
"#;

pub(super) fn output() -> Output {
    let mut out = TOP.to_owned();
    for s in STRUCTS {
        out.push_str(&format!("\nSIZE({}, {});\n", s.c, s.size));
        for f in s.fields {
            out.push_str(&format!(
                "MEMBER({}, {}, {}, {});\n",
                s.c, f.name, f.offset, f.size
            ));
        }
    }
    Output::new("include/layout_check.c", out)
}
