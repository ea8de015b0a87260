//! `include/proxy_golang.ffi.lua`: LuaJIT's `ffi.cdef` has no preprocessor, so the declarations and the constants are
//! written out for it.

use anyhow::{Context, Result};

use super::Output;
use super::cbind::Model;
use super::names::{HEADERS, Piece};

const TOP: &str = r#"-- SPDX-License-Identifier: Apache-2.0
-- Generated from proxy-golang-abi by `cargo xtask gen`: do not edit.
--
-- The proxy_golang ABI for LuaJIT. Installed as proxy_golang/ffi.lua on package.path; requiring it declares the types,
-- and the module holds the constants without their prefix PXG_.
--
--   local ffi = require "ffi"
--   local pxg = require "proxy_golang.ffi"
--   local ev = ffi.new("pxg_event", { size = ffi.sizeof("pxg_event"), phase = pxg.PHASE_REQUEST_HEADERS })
--   local mask = pxg.phase_bit(pxg.PHASE_LOG)
--
-- The documentation is in proxy_golang.h. A host in Lua leaves every [any-thread] entry of pxg_host null: a Lua
-- callback must not run on another thread.

local bit = require "bit"
local ffi = require "ffi"

if not (ffi.abi "64bit" and ffi.os ~= "Windows") then
  error("proxy_golang v1 is defined for LP64 targets only")
end
"#;

pub(super) fn output(model: &Model) -> Result<Output> {
    let mut cdef = String::new();
    let mut constants = String::new();
    for piece in HEADERS.iter().flat_map(|h| h.pieces) {
        match piece {
            Piece::Struct(name) => {
                let s = model.structs.iter().find(|s| s.rust == *name);
                let s = s.with_context(|| format!("no struct {name}"))?;
                cdef.push_str(&format!("typedef struct {} {{\n", s.c));
                for m in &s.members {
                    cdef.push_str(&format!("  {};\n", m.decl));
                }
                cdef.push_str(&format!("}} {};\n", s.c));
            }
            Piece::Codes(name) => {
                let codes = model.codes.iter().find(|c| c.rust == *name);
                let codes = codes.with_context(|| format!("no newtype {name}"))?;
                for c in &codes.constants {
                    let value = c.value.context("a newtype holds numbers")?;
                    constants.push_str(&entry(&c.c, &value.to_string()));
                }
            }
            Piece::Free(names) => {
                for name in *names {
                    let c = model.free.iter().find(|c| c.rust == *name);
                    let c = c.with_context(|| format!("no constant {name}"))?;
                    constants.push_str(&entry(&c.c, &c.text));
                }
            }
            Piece::Section(_) | Piece::Text(_) => {}
        }
    }
    let function = model.entry.decl.replacen(
        &format!("(*{})", model.entry.name),
        super::names::ENTRY.1,
        1,
    );
    cdef.push_str(&format!("typedef {};\n{function};\n", model.entry.decl));
    let text = format!(
        "{TOP}\nffi.cdef [[\n{cdef}]]\n\nlocal pxg = {{\n{constants}}}\n\n\
         -- The bit of a phase in a phase mask, as uint64_t.\n\
         function pxg.phase_bit(phase)\n  return bit.lshift(1ULL, phase)\nend\n\nreturn pxg\n"
    );
    Ok(Output::new("include/proxy_golang.ffi.lua", text))
}

fn entry(c: &str, value: &str) -> String {
    format!("  {} = {value},\n", c.trim_start_matches("PXG_"))
}
