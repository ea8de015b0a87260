-- SPDX-License-Identifier: Apache-2.0

-- What the nginx module exports (hosts/nginx/src/ngx_http_pxg_lua.h), and whether it is the one of this release.

local ffi = require "ffi"
require "resty.core.base"
require "resty.proxy_golang.fields"

local C = ffi.C

ffi.cdef [[
typedef struct {
    const char *guest, *filter, *name, *config;
    uint32_t    n_config, fail_open, failure_status, max_pending, attributes, reserved;
    uint64_t    without, pend_limit_ns, hold_limit_ns, max_body;
} ngx_http_pxg_lua_spec_t;

typedef struct {
    uint32_t    kind;
    int32_t     direction;
    uint32_t    flags, reserved;
    const char *bytes;
    size_t      n_bytes;
    const pxg_lua_field *fields;
    size_t      n_fields;
} ngx_http_pxg_lua_out_t;

int ngx_http_pxg_lua_abi_version(void);
int ngx_http_pxg_lua_filter(const char *name, uint64_t without, int attributes, char *err, size_t *errlen);
int ngx_http_pxg_lua_load(const ngx_http_pxg_lua_spec_t *spec, char *err, size_t *errlen);
uint64_t ngx_http_pxg_lua_open(ngx_http_request_t *r, const int *filters, size_t n, uint32_t flags, char *err,
                               size_t *errlen);
int ngx_http_pxg_lua_head(uint64_t handle, int direction, uint32_t flags, const pxg_lua_field *fields, size_t n);
int ngx_http_pxg_lua_bytes(uint64_t handle, int direction, const char *bytes, size_t n);
int ngx_http_pxg_lua_end(uint64_t handle, int direction, const pxg_lua_field *trailers, size_t n);
int ngx_http_pxg_lua_take(uint64_t handle, ngx_http_pxg_lua_out_t *out);
int ngx_http_pxg_lua_pends(uint64_t handle, int direction);
int ngx_http_pxg_lua_sees_body(uint64_t handle, int direction);
int ngx_http_pxg_lua_watch(uint64_t handle, int direction, void *sema);
const char *ngx_http_pxg_lua_details(uint64_t handle);
int ngx_http_pxg_lua_read(uint64_t handle, ngx_http_request_t *r);
int ngx_http_pxg_lua_finish(uint64_t handle, uint32_t why);
size_t ngx_http_pxg_lua_streams(void);
int ngx_http_pxg_lua_request_ends(ngx_http_request_t *r);
void ngx_http_pxg_lua_no_continue(ngx_http_request_t *r);
]]

local ABI = 2


local ok, version = pcall(function()
    return C.ngx_http_pxg_lua_abi_version()
end)
if not ok then
    error("resty.proxy_golang: nginx has no proxy_golang module: load_module ngx_http_proxy_golang_module.so, "
          .. "or use resty.proxy_golang.ffi", 2)
end
if version ~= ABI then
    error("resty.proxy_golang: the proxy_golang module has version " .. version .. " of the functions for Lua, "
          .. "expected " .. ABI .. ": install library and module of one release", 2)
end


local ERR_SIZE = 1600
local errlen = ffi.new("size_t[1]")
local errbuf = ffi.new("char[?]", ERR_SIZE)

local _M = { C = C, errbuf = errbuf, errlen = errlen }


-- Before a function that says its cause by these two.
function _M.clear()
    errlen[0] = ERR_SIZE
end


function _M.cause()
    return ffi.string(errbuf, errlen[0])
end


return _M
