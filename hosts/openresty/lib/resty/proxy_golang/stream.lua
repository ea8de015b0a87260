-- SPDX-License-Identifier: Apache-2.0

-- Streams: what the nginx module exports for them, as objects.

local ffi = require "ffi"
local base = require "resty.core.base"
local semaphore = require "ngx.semaphore"
local module = require "resty.proxy_golang.module"
local filter = require "resty.proxy_golang.filter"
local fields = require "resty.proxy_golang.fields"

local C, errbuf, errlen = module.C, module.errbuf, module.errlen
local ffi_new = ffi.new
local ffi_str = ffi.string
local get_request = base.get_request
local pack, unpack_fields = fields.pack, fields.unpack
local setmetatable = setmetatable
local tonumber = tonumber
local type = type
local concat = table.concat
local find = string.find

local REQUEST, RESPONSE = 0, 1
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

-- Members of a stream: what has left of a direction since it was answered last, whether its head was fed, whether its head
-- has left, whether a thread waits in it.
local LEAVING, BEGAN, LEFT, WAITING = 1, 3, 5, 7

local _M = {}

local Stream = {}
local stream_mt = { __index = Stream }

local out = ffi_new("ngx_http_pxg_lua_out_t")
local chain = ffi_new("int[32]")

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
    if filter.is(filters) then
        filters = { filters }
    end
    if type(filters) ~= "table" or #filters == 0 or #filters > 32 then
        error("bad chain: expected a filter or an array of 1 to 32 filters", 2)
    end
    for i = 1, #filters do
        if not filter.is(filters[i]) then
            error("bad chain: entry " .. i .. " is no filter of pxg.filter or pxg.load", 2)
        end
    end
    return setmetatable({
        filters = filters,
        trailers = not opts or opts.trailers ~= false,
        handle = 0,
        replied = false,
        -- By direction.
        [LEAVING] = false, [LEAVING + 1] = false,
        [BEGAN] = false, [BEGAN + 1] = false,
        [LEFT] = false, [LEFT + 1] = false,
        [WAITING] = false, [WAITING + 1] = false,
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
    module.clear()
    local handle = tonumber(C.ngx_http_pxg_lua_open(r, chain, n, flags, errbuf, errlen))
    if handle == 0 then
        return nil, module.cause()
    end
    self.handle = handle
    return true
end


local function leaving(self, d)
    local o = self[LEAVING + d]
    if not o then
        o = { n = 0 }
        self[LEAVING + d] = o
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
            self[LEFT + d] = true
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
    self[WAITING + d] = true
    local woken
    woken, err = sema:wait(FOREVER)
    self[WAITING + d] = false
    if woken or err == "timeout" then
        return true
    end
    if find(err, "API disabled", 1, true) then
        err = (C.ngx_http_pxg_lua_pends(self.handle, d) == 1 and "a guest answered PENDING in " or "waiting in ")
              .. ngx.get_phase() .. "_by_lua*, which cannot wait: "
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
        local over = self.replied and self[LEAVING + RESPONSE].last
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
    local o = self[LEAVING + d]
    self[LEAVING + d] = false
    if not o then
        return { action = self[LEFT + d] and "continue" or "more", body = "" }
    end
    return {
        action = self[LEFT + d] and "continue" or "more",
        headers = o.headers,
        body = o.n == 1 and o[1] or concat(o, "", 1, o.n),
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
    if self[WAITING + d] then
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
    self[BEGAN + d] = true
    self[LEFT + d] = false
    self[LEAVING + d] = false
    if C.ngx_http_pxg_lua_head(self.handle, d, flags, at, n) ~= 0 then
        return nil, "closed"
    end
    return settle(self, d)
end


local function ready_for_body(self, d)
    local ready_to, err = ready(self, d)
    if ready_to and not self[BEGAN + d] then
        return nil, "headers come first"
    end
    return ready_to, err
end


local function body(self, d, bytes, last)
    local ready_to, err = ready_for_body(self, d)
    if not ready_to then
        return nil, err
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
    local ready_to, err = ready_for_body(self, d)
    if not ready_to then
        return nil, err
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


-- What ngx_http_pxg_lua_read answers.
local NOTHING, STALE, NOT_THERE = 0, -1, -2
local UNREAD = { [-408] = "timeout", [-413] = "too large", [-499] = "client aborted" }


-- Feeds the next piece of the body that nginx receives for the current request, as it comes. Waits for it.
function Stream:read_request_body()
    local ready_to, err = ready_for_body(self, REQUEST)
    if not ready_to then
        return nil, err
    end
    local r = get_request()
    if not r then
        return nil, "no request found"
    end
    while true do
        local got = C.ngx_http_pxg_lua_read(self.handle, r)
        if got > NOTHING then
            return settle(self, REQUEST)
        end
        if got == STALE then
            return nil, "closed"
        end
        if got == NOT_THERE then
            return nil, "no body to be read: it has been read before, or the stream is of another request"
        end
        if got < NOTHING then
            return nil, UNREAD[got] or "a bad request: " .. -got
        end
        ready_to, err = wait(self, REQUEST)
        if not ready_to then
            close(self, CAUSES.error)
            return nil, err
        end
        -- A limit of the guest's, or the other direction, may have moved this one meanwhile.
        if self.handle < 0 or not drain(self) or self.replied or self[LEAVING + REQUEST] then
            return settle(self, REQUEST)
        end
    end
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


function filter.methods:stream(opts)
    return _M.stream(self, opts)
end


-- One question: a request without a body, and its end.
function filter.methods:request_headers(headers)
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
