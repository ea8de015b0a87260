-- SPDX-License-Identifier: Apache-2.0

-- Filters and streams: what the nginx module exports, as objects.

local ffi = require "ffi"
local base = require "resty.core.base"
local semaphore = require "ngx.semaphore"
local fields = require "resty.proxy_golang.fields"
local FEATURE = require "resty.proxy_golang.features"

local C = ffi.C
local ffi_new = ffi.new
local ffi_str = ffi.string
local get_request = base.get_request
local pack, unpack_fields = fields.pack, fields.unpack
local setmetatable = setmetatable
local tonumber = tonumber
local type = type
local concat = table.concat
local floor = math.floor
local find = string.find
local bor, lshift = bit.bor, bit.lshift

ffi.cdef [[
typedef struct {
    const char *guest, *filter, *name, *config;
    uint32_t    n_config, fail_open, failure_status, max_pending;
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
int ngx_http_pxg_lua_filter(const char *name, uint64_t without, char *err, size_t *errlen);
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
int ngx_http_pxg_lua_finish(uint64_t handle, uint32_t why);
size_t ngx_http_pxg_lua_streams(void);
int ngx_http_pxg_lua_request_ends(ngx_http_request_t *r);
void ngx_http_pxg_lua_no_continue(ngx_http_request_t *r);
]]

local ABI = 1

local REQUEST, RESPONSE = 0, 1
local ERR_SIZE = 1600
-- Kinds of what may leave, and flags of it.
local OUT_RESET, OUT_HEAD, OUT_BYTES = 1, 2, 3
local OUT_LOCAL, OUT_TRAILERS = 0x2, 0x8
-- Flags of a head.
local HEAD_ENDS, HEAD_EOS_UNKNOWN, HEAD_LOCAL = 0x1, 0x2, 0x4
-- Flags of a stream.
local RECEIVES_TRAILERS, UPSTREAM_TRAILERS, HEAD_METHOD = 0x2, 0x4, 0x8

local CAUSES = { complete = 1, client_abort = 2, upstream_reset = 3, timeout = 4, replied = 5, error = 6 }

-- Longer than any deadline of the host, which ends each PENDING.
local FOREVER = 24 * 3600
local SLOTS = 2 ^ 20


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


local _M = {}

local Filter = {}
local filter_mt = { __index = Filter }
local Stream = {}
local stream_mt = { __index = Stream }

local errlen = ffi_new("size_t[1]")
local errbuf = ffi_new("char[?]", ERR_SIZE)
local out = ffi_new("ngx_http_pxg_lua_out_t")
local chain = ffi_new("int[32]")


local function refusal()
    return ffi_str(errbuf, errlen[0])
end


-- ---- Filters --------------------------------------------------------------------------------------------------------

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
    errlen[0] = ERR_SIZE
    local n = C.ngx_http_pxg_lua_filter(name, without(opts), errbuf, errlen)
    if n < 0 then
        return nil, refusal()
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
    spec.without = without(opts)
    spec.fail_open = mode == "open" and 1 or 0
    spec.failure_status = number(opts, "failure_status")
    if opts.failure_status and (opts.failure_status < 500 or opts.failure_status > 599) then
        error("bad option \"failure_status\": found " .. opts.failure_status .. ", expected 500 to 599", 2)
    end
    spec.max_pending = number(opts, "max_pending")
    spec.pend_limit_ns = number(opts, "pend_limit", 1e9)
    spec.hold_limit_ns = number(opts, "hold_limit", 1e9)
    spec.max_body = number(opts, "max_body")
    errlen[0] = ERR_SIZE
    local n = C.ngx_http_pxg_lua_load(spec, errbuf, errlen)
    if n < 0 then
        return nil, refusal()
    end
    return new_filter(name, n)
end


-- ---- Streams --------------------------------------------------------------------------------------------------------

-- One for each direction of each slot of the module, and for good: what the module posts to is never collected.
local semaphores = {}


local function semaphore_of(handle, d)
    local key = handle % SLOTS * 2 + d
    local sema, err = semaphores[key]
    if not sema then
        sema, err = semaphore.new()
        semaphores[key] = sema
    end
    return sema, err
end


function _M.stream(filters, opts)
    if getmetatable(filters) == filter_mt then
        filters = { filters }
    end
    if type(filters) ~= "table" or #filters == 0 or #filters > 32 then
        error("bad chain: expected a filter or an array of 1 to 32 filters", 2)
    end
    for i = 1, #filters do
        if getmetatable(filters[i]) ~= filter_mt then
            error("bad chain: entry " .. i .. " is no filter of pxg.filter or pxg.load", 2)
        end
    end
    return setmetatable({
        filters = filters,
        trailers = not opts or opts.trailers ~= false,
        handle = 0,
        leaving = {},
        began = {},
        left = {},
        waiting = {},
    }, stream_mt)
end


-- The stream begins with its request's head, which says whether the method is HEAD.
local function open(self, headers)
    local r = get_request()
    if not r then
        return nil, "no request found"
    end
    local flags = self.trailers and RECEIVES_TRAILERS + UPSTREAM_TRAILERS or 0
    local method = headers[":method"]
    if type(headers[1]) == "table" then
        for i = 1, #headers do
            if headers[i][1] == ":method" then
                method = headers[i][2]
            end
        end
    end
    if method == "HEAD" then
        flags = flags + HEAD_METHOD
    end
    local n = #self.filters
    for i = 1, n do
        chain[i - 1] = self.filters[i].number
    end
    errlen[0] = ERR_SIZE
    local handle = tonumber(C.ngx_http_pxg_lua_open(r, chain, n, flags, errbuf, errlen))
    if handle == 0 then
        return nil, refusal()
    end
    self.handle = handle
    return true
end


local function leaving(self, d)
    local o = self.leaving[d]
    if not o then
        o = { n = 0 }
        self.leaving[d] = o
    end
    return o
end


-- Collects what may leave. False: the stream was reset.
local function drain(self)
    while true do
        C.ngx_http_pxg_lua_take(self.handle, out)
        local kind, d = out.kind, out.direction
        if kind == 0 then
            return true
        end
        if kind == OUT_RESET then
            return false
        end
        local o = leaving(self, d)
        if kind == OUT_HEAD then
            o.headers = unpack_fields(out.fields, tonumber(out.n_fields))
            self.left[d] = true
            if d == RESPONSE and out.flags % (2 * OUT_LOCAL) >= OUT_LOCAL then
                self.replied = true
            end
        elseif kind == OUT_BYTES then
            o.n = o.n + 1
            o[o.n] = ffi_str(out.bytes, out.n_bytes)
        else
            o.last = true
            if out.flags % (2 * OUT_TRAILERS) >= OUT_TRAILERS then
                o.trailers = unpack_fields(out.fields, tonumber(out.n_fields))
            end
        end
    end
end


local function close(self, why)
    local handle = self.handle
    self.handle = -1
    if handle > 0 then
        C.ngx_http_pxg_lua_finish(handle, why)
    end
end


local function wait(self, d)
    local sema, err = semaphore_of(self.handle, d)
    if not sema then
        return nil, err
    end
    C.ngx_http_pxg_lua_watch(self.handle, d, sema.sem)
    self.waiting[d] = true
    local woken
    woken, err = sema:wait(FOREVER)
    self.waiting[d] = nil
    if woken or err == "timeout" then
        return true
    end
    if find(err, "API disabled", 1, true) then
        err = "a guest answered PENDING in " .. ngx.get_phase() .. "_by_lua*, which cannot wait: "
              .. "use a filter with the option sync or phases"
    end
    return nil, err
end


local function reply_of(self)
    local o = leaving(self, RESPONSE)
    local headers = o.headers
    local details = C.ngx_http_pxg_lua_details(self.handle)
    local reply = {
        status = tonumber(headers[":status"]),
        headers = headers,
        body = concat(o, "", 1, o.n),
        trailers = o.trailers,
        details = details ~= nil and ffi_str(details) or nil,
    }
    headers[":status"] = nil
    self.reply = reply
    return reply
end


-- What became of what was fed in a direction: waits while a guest pends.
local function settle(self, d)
    while true do
        if self.handle < 0 then
            return nil, "closed"
        end
        if not drain(self) then
            close(self, CAUSES.error)
            return nil, "reset"
        end
        local over = self.replied and self.leaving[RESPONSE].last
        local pends = over and 0 or C.ngx_http_pxg_lua_pends(self.handle, self.replied and RESPONSE or d)
        if pends == 0 then
            break
        end
        if pends < 0 then
            self.handle = -1
            return nil, "closed"
        end
        local woken, err = wait(self, d)
        if not woken then
            close(self, CAUSES.error)
            return nil, err
        end
    end
    if self.replied then
        return { action = "reply", reply = reply_of(self) }
    end
    local o = self.leaving[d]
    self.leaving[d] = nil
    if not o then
        return { action = self.left[d] and "continue" or "more", body = "" }
    end
    return {
        action = self.left[d] and "continue" or "more",
        headers = o.headers,
        body = concat(o, "", 1, o.n),
        trailers = o.trailers,
        last = o.last,
    }
end


local function ready(self, d)
    if self.handle < 0 then
        return nil, "closed"
    end
    if self.reply then
        return nil, "a guest has replied"
    end
    if self.waiting[d] then
        return nil, "busy: another thread waits for a guest in this direction"
    end
    return true
end


local function head(self, d, headers, flags)
    if type(headers) ~= "table" then
        error("bad headers: found a " .. type(headers) .. ", expected a table", 3)
    end
    local ready_to, err = ready(self, d)
    if not ready_to then
        return nil, err
    end
    if self.handle == 0 then
        if d == RESPONSE then
            return nil, "the request's headers come first"
        end
        ready_to, err = open(self, headers)
        if not ready_to then
            return nil, err
        end
    elseif d == REQUEST then
        return nil, "the request's headers have been given"
    end
    local at, n = pack(headers)
    if not at then
        close(self, CAUSES.error)
        return nil, n
    end
    self.began[d] = true
    self.left[d] = nil
    self.leaving[d] = nil
    if C.ngx_http_pxg_lua_head(self.handle, d, flags, at, n) ~= 0 then
        return nil, "closed"
    end
    return settle(self, d)
end


local function body(self, d, bytes, last)
    local ready_to, err = ready(self, d)
    if not ready_to then
        return nil, err
    end
    if not self.began[d] then
        return nil, "headers come first"
    end
    if bytes ~= nil and type(bytes) ~= "string" then
        error("bad bytes: found a " .. type(bytes) .. ", expected a string or nil", 3)
    end
    if bytes and #bytes > 0 and C.ngx_http_pxg_lua_bytes(self.handle, d, bytes, #bytes) ~= 0 then
        return nil, "closed"
    end
    if last and C.ngx_http_pxg_lua_end(self.handle, d, nil, 0) ~= 0 then
        return nil, "closed"
    end
    return settle(self, d)
end


local function trailers(self, d, t)
    local ready_to, err = ready(self, d)
    if not ready_to then
        return nil, err
    end
    if not self.began[d] then
        return nil, "headers come first"
    end
    local at, n = pack(t)
    if not at then
        return nil, n
    end
    if C.ngx_http_pxg_lua_end(self.handle, d, at, n) ~= 0 then
        return nil, "closed"
    end
    return settle(self, d)
end


function Stream:request_headers(headers, end_stream)
    return head(self, REQUEST, headers, end_stream and HEAD_ENDS or 0)
end


function Stream:request_body(bytes, last)
    return body(self, REQUEST, bytes, last)
end


function Stream:request_trailers(t)
    return trailers(self, REQUEST, t)
end


function Stream:response_headers(headers, end_stream, by_host)
    -- A filter of nginx does not know; so nobody is told that a body follows.
    return head(self, RESPONSE, headers, (end_stream and HEAD_ENDS or HEAD_EOS_UNKNOWN) + (by_host and HEAD_LOCAL or 0))
end


function Stream:response_body(bytes, last)
    return body(self, RESPONSE, bytes, last)
end


function Stream:response_trailers(t)
    return trailers(self, RESPONSE, t)
end


function Stream:sees_request_body()
    return self.handle > 0 and C.ngx_http_pxg_lua_sees_body(self.handle, REQUEST) == 1
end


function Stream:sees_response_body()
    return self.handle > 0 and C.ngx_http_pxg_lua_sees_body(self.handle, RESPONSE) == 1
end


function Stream:finish(why)
    local cause = CAUSES[why or "complete"]
    if not cause then
        error("bad cause: found " .. tostring(why) .. ", expected complete, client_abort, upstream_reset, timeout, "
              .. "replied or error", 2)
    end
    if self.handle < 0 then
        return nil, "closed"
    end
    close(self, cause)
    return true
end


function Filter:stream(opts)
    return _M.stream(self, opts)
end


-- One question: a request without a body, and its end.
function Filter:request_headers(headers)
    local stream = _M.stream(self)
    local verdict, err = stream:request_headers(headers, true)
    stream:finish()
    return verdict, err
end


-- Whether the request that nginx serves ends at its headers.
function _M.request_ends()
    return C.ngx_http_pxg_lua_request_ends(get_request()) == 1
end


-- Its response is coming: nginx shall not ask for the body any more.
function _M.no_continue()
    C.ngx_http_pxg_lua_no_continue(get_request())
end


-- Streams that are open on this worker, for tests and metrics.
function _M.streams()
    return tonumber(C.ngx_http_pxg_lua_streams())
end


return _M
