-- SPDX-License-Identifier: Apache-2.0

-- Filters: a guest's configurations, by name or loaded by Lua.

local ffi = require "ffi"
local module = require "resty.proxy_golang.module"
local FEATURE = require "resty.proxy_golang.features"

local C, errbuf, errlen = module.C, module.errbuf, module.errlen
local ffi_new = ffi.new
local setmetatable = setmetatable
local type = type
local floor = math.floor
local find = string.find
local bor, lshift = bit.bor, bit.lshift

local Filter = {}
local filter_mt = { __index = Filter }

-- `methods`: of filters.
local _M = { methods = Filter }


local PEND_REQUEST = "PEND_REQUEST_HEADERS PEND_REQUEST_BODY PEND_REQUEST_TRAILERS "
local PEND_RESPONSE = "PEND_RESPONSE_HEADERS PEND_RESPONSE_BODY PEND_RESPONSE_TRAILERS "
local TRAILERS = "TRAILERS_IN_REQUEST TRAILERS_IN_RESPONSE TRAILERS_OUT_REQUEST TRAILERS_OUT_RESPONSE "


-- A mask of features by their names.
local function mask(names)
    local m = 0ULL
    for name in names:gmatch("%S+") do
        local feature = FEATURE[name]
        if not feature then
            return nil, name
        end
        m = bor(m, lshift(1ULL, feature))
    end
    return m
end


-- Where Lua cannot wait.
local SYNC = mask(PEND_REQUEST .. PEND_RESPONSE .. "BATCH_END")
-- A response that passes header_filter_by_lua* and body_filter_by_lua*: its head leaves at once, nothing waits, and
-- trailers are not seen.
local PHASES = mask(PEND_RESPONSE .. "PEND_REQUEST_TRAILERS HOLD_RESPONSE BODY_WHOLE_RESPONSE " .. TRAILERS)


-- The features that a filter shall not be offered.
local function without(opts)
    if not opts then
        return 0ULL
    end
    local m = bor(opts.sync and SYNC or 0ULL, opts.phases and PHASES or 0ULL)
    if opts.without then
        local more, unknown = mask(table.concat(opts.without, " "))
        if not more then
            error("bad option \"without\": found " .. unknown .. ", expected names of features, such as HOLD_RESPONSE", 3)
        end
        m = bor(m, more)
    end
    return m
end


-- Whether the filter's streams are about the request that nginx serves.
local function attributes(opts)
    return opts and (opts.attributes or opts.phases) and 1 or 0
end


local function new_filter(name, number)
    return setmetatable({ name = name, number = number }, filter_mt)
end


local function text(opts, key, preset)
    local v = opts[key]
    if v == nil and preset ~= nil then
        return preset
    end
    if type(v) ~= "string" or v == "" or find(v, "\0", 1, true) then
        error("bad option \"" .. key .. "\": found " .. tostring(v) .. ", expected a string", 3)
    end
    return v
end


local function number(opts, key, scale)
    local v = opts[key]
    if v == nil then
        return 0
    end
    if type(v) ~= "number" or v ~= v or v <= 0 then
        error("bad option \"" .. key .. "\": found " .. tostring(v) .. ", expected a number above 0", 3)
    end
    return floor(v * (scale or 1))
end


function _M.filter(name, opts)
    if type(name) ~= "string" or find(name, "\0", 1, true) then
        error("bad name of a filter: found a " .. type(name) .. ", expected a string", 2)
    end
    module.clear()
    local n = C.ngx_http_pxg_lua_filter(name, without(opts), attributes(opts), errbuf, errlen)
    if n < 0 then
        return nil, module.cause()
    end
    return new_filter(name, n)
end


function _M.load(opts)
    if type(opts) ~= "table" then
        error("bad argument: found a " .. type(opts) .. ", expected a table of options", 2)
    end
    local guest, filter = text(opts, "guest"), text(opts, "filter")
    local name = text(opts, "name", filter)
    local config = opts.config or ""
    if type(config) ~= "string" then
        error("bad option \"config\": found a " .. type(config) .. ", expected a string", 2)
    end
    local mode = opts.failure_mode or "closed"
    if mode ~= "closed" and mode ~= "open" then
        error("bad option \"failure_mode\": found " .. tostring(mode) .. ", expected \"closed\" or \"open\"", 2)
    end
    local spec = ffi_new("ngx_http_pxg_lua_spec_t")
    spec.guest, spec.filter, spec.name = guest, filter, name
    spec.config, spec.n_config = config, #config
    spec.without, spec.attributes = without(opts), attributes(opts)
    spec.fail_open = mode == "open" and 1 or 0
    spec.failure_status = number(opts, "failure_status")
    if opts.failure_status and (opts.failure_status < 500 or opts.failure_status > 599) then
        error("bad option \"failure_status\": found " .. opts.failure_status .. ", expected 500 to 599", 2)
    end
    spec.max_pending = number(opts, "max_pending")
    spec.pend_limit_ns = number(opts, "pend_limit", 1e9)
    spec.hold_limit_ns = number(opts, "hold_limit", 1e9)
    spec.max_body = number(opts, "max_body")
    module.clear()
    local n = C.ngx_http_pxg_lua_load(spec, errbuf, errlen)
    if n < 0 then
        return nil, module.cause()
    end
    return new_filter(name, n)
end


function _M.is(value)
    return getmetatable(value) == filter_mt
end


return _M
