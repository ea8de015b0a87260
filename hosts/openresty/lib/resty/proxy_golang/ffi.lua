-- SPDX-License-Identifier: Apache-2.0

-- A host in LuaJIT alone, for places where no module can be added to nginx. Synchronous, whole bodies only. This file has
-- its streams, ffi_guest.lua what comes before them, ffi_result.lua what guests answer.

local ffi = require "ffi"
local fields = require "resty.proxy_golang.fields"
local abi = require "resty.proxy_golang.abi"
local guests = require "resty.proxy_golang.ffi_guest"
local result = require "resty.proxy_golang.ffi_result"

local ffi_new = ffi.new
local ffi_fill = ffi.fill
local type = type
local tonumber = tonumber
local setmetatable = setmetatable
local gsub = string.gsub
local band, bnot, lshift = bit.band, bit.bnot, bit.lshift
local give_back = guests.give_back
local fill = fields.fill

local PHASE, WHOLE = abi.PHASE, abi.WHOLE
local REQUEST_HEADERS, REQUEST_BODY = PHASE.REQUEST_HEADERS, PHASE.REQUEST_BODY
local RESPONSE_HEADERS, RESPONSE_BODY, LOG = PHASE.RESPONSE_HEADERS, PHASE.RESPONSE_BODY, PHASE.LOG
-- Flags of events.
local END_STREAM, BODY_END, WHOLE_BODY, HEADERS_HELD, OVER_LIMIT, CAN_REPLY = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
local REQUEST, RESPONSE = 0, 1

local _M = { _VERSION = "1.0.0", load = guests.load }

local Stream = {}
local stream_mt = { __index = Stream }


function guests.methods:stream()
    if self.closed then
        return nil, "the filter is closed"
    end
    self.streams = self.streams + 1
    self.guest.n_streams = self.guest.n_streams + 1
    return setmetatable({
        filter = self,
        number = self.guest.n_streams,
        user = 0,
        subscribe = self.subscribe,
        mode = self.mode, -- The filter's until the guest changes it.
        failed = false, replied = false, changed = false, finished = false,
        -- By direction.
        headers = { [REQUEST] = false, [RESPONSE] = false },
        ended = { [REQUEST] = false, [RESPONSE] = false },
    }, stream_mt)
end


-- ---- Events ---------------------------------------------------------------------------------------------------------

-- Of one call at a time: a guest's hook cannot reach Lua but through scratch_more.
local ev, out = ffi_new("pxg_lua_event"), ffi_new("pxg_lua_result")
local EV_SIZE, OUT_SIZE = ffi.sizeof(ev), ffi.sizeof(out)
local chunk = ffi_new("pxg_lua_str[1]")
local absent = ffi_new("pxg_lua_str[64]")
for i = 0, 63 do
    absent[i].flags = 1
end
local own, peer = fields.buffer(), fields.buffer()


-- A guest may come back by scratch_more, and compiled code must not be called back: this is not compiled. Called as it is
-- it would end every trace for good. Behind a function of Lua's library in C, such as gsub, the compiler goes on.
local current
local function cross()
    current.on_event(current.ctx, ev, out)
end
jit.off(cross)


-- Exactly: a number if it fits one.
local function user_of(value)
    if value < 0x20000000000000ULL then
        return tonumber(value)
    end
    return value
end


-- One event; the guest's decision, copied, or nil and why it is none.
local function deliver(self, phase, flags, body, arg)
    local filter = self.filter
    local d = phase >= RESPONSE_HEADERS and RESPONSE or REQUEST
    local list, request = self.headers[d], self.headers[REQUEST]
    ffi_fill(ev, EV_SIZE)
    ffi_fill(out, OUT_SIZE)
    ev.size, ev.phase, ev.flags = EV_SIZE, phase, flags
    ev.config, ev.user, ev.stream, ev.arg = filter.value, self.user, self.number, arg
    if list then
        ev.fields, ev.n_fields = fill(own, list), #list
    end
    if request and (phase == LOG or filter.peer and d == RESPONSE) then
        ev.peer_fields, ev.n_peer_fields = fill(peer, request), #request
    end
    if body and #body > 0 then
        chunk[0].ptr, chunk[0].len = body, #body
        ev.chunks, ev.n_chunks = chunk, 1
    end
    if filter.n_attrs > 0 and filter.n_attrs <= 64 then
        ev.attrs, ev.n_attrs = absent, filter.n_attrs
    end
    out.size, out.user = OUT_SIZE, self.user
    out.scratch_ops, out.scratch_ops_cap = guests.ops, guests.n_ops
    out.scratch, out.scratch_cap = guests.scratch, guests.n_scratch
    current = filter.guest
    gsub("x", "x", cross)
    self.user = user_of(out.user)
    local decision, err = result.read(out, phase, list, body, d == REQUEST)
    give_back()
    return decision, err
end


local function fail(self, d, err, before)
    self.failed = true
    if ngx then
        ngx.log(ngx.ERR, "proxy_golang: ", self.filter.name, ": ", err)
    end
    if self.filter.open and not self.changed then
        return { action = "continue", headers = before and self.headers[d], body = before or "", last = self.ended[d] }
    end
    self.replied = true
    return {
        action = "reply",
        reply = { status = 500, headers = { ["content-length"] = "0" }, body = "", details = self.filter.name .. ".error" },
    }
end


local function take(self, d, decision)
    if decision.action == "reset" then
        self.replied = true
        return nil, "reset"
    end
    if decision.action == "reply" then
        self.replied = true
        return { action = "reply", reply = decision.reply }
    end
    if decision.fields then
        self.headers[d] = decision.fields
        self.changed = true
    end
    if decision.body then
        self.changed = true
    end
    if decision.unsubscribe ~= 0 then
        self.subscribe = band(self.subscribe, bnot(decision.unsubscribe))
    end
    if decision.request_mode ~= 0 or decision.response_mode ~= 0 then
        local r, s = decision.request_mode, decision.response_mode
        self.mode = { [REQUEST] = r ~= 0 and r or self.mode[REQUEST], [RESPONSE] = s ~= 0 and s or self.mode[RESPONSE] }
    end
    return true
end


local function wants(self, phase)
    return not self.failed and band(self.subscribe, lshift(1, phase)) ~= 0
end


local function holds(self, d)
    return self.mode[d] == WHOLE and wants(self, d == REQUEST and REQUEST_BODY or RESPONSE_BODY)
end


local function leave(self, d, body)
    return { action = "continue", headers = fields.map(self.headers[d]), body = body or "", last = self.ended[d] }
end


local function head(self, d, headers, end_stream)
    if self.replied or self.finished then
        return nil, self.finished and "closed" or "a guest has replied"
    end
    local list, err = fields.list(headers)
    if not list then
        return nil, err
    end
    self.headers[d] = list
    self.ended[d] = end_stream and true or false
    local phase = d == REQUEST and REQUEST_HEADERS or RESPONSE_HEADERS
    if wants(self, phase) then
        local decision
        decision, err = deliver(self, phase, CAN_REPLY + (end_stream and END_STREAM or 0), nil, 0)
        if not decision then
            return fail(self, d, err)
        end
        local went
        went, err = take(self, d, decision)
        if went ~= true then
            return went, err
        end
    end
    if not end_stream and holds(self, d) then
        return { action = "more", body = "" }
    end
    if end_stream and holds(self, d) and not wants(self, phase) then
        -- A guest of whole bodies alone sees every message.
        self.ended[d] = false
        return self[d == REQUEST and "request_body" or "response_body"](self, "")
    end
    return leave(self, d)
end


local function body(self, d, bytes)
    if self.replied or self.finished then
        return nil, self.finished and "closed" or "a guest has replied"
    end
    if not self.headers[d] then
        return nil, "headers come first"
    end
    if self.ended[d] then
        return nil, "the message has ended"
    end
    bytes = bytes or ""
    if type(bytes) ~= "string" then
        error("bad bytes: found a " .. type(bytes) .. ", expected the whole body as a string", 3)
    end
    self.ended[d] = true
    if not holds(self, d) then
        local o = leave(self, d, bytes)
        o.headers = nil
        return o
    end
    local flags = HEADERS_HELD + BODY_END + END_STREAM + CAN_REPLY
                  + (#bytes > self.filter.max_body[d] and OVER_LIMIT or WHOLE_BODY)
    local decision, err = deliver(self, d == REQUEST and REQUEST_BODY or RESPONSE_BODY, flags, bytes, 0)
    if not decision then
        return fail(self, d, err, bytes)
    end
    local went
    went, err = take(self, d, decision)
    if went ~= true then
        return went, err
    end
    bytes = decision.body or bytes
    fields.set_length(self.headers[d], #bytes)
    return leave(self, d, bytes)
end


function Stream:request_headers(headers, end_stream)
    return head(self, REQUEST, headers, end_stream)
end


function Stream:request_body(bytes)
    return body(self, REQUEST, bytes)
end


function Stream:response_headers(headers, end_stream)
    if not self.headers[REQUEST] then
        return nil, "the request's headers come first"
    end
    return head(self, RESPONSE, headers, end_stream)
end


function Stream:response_body(bytes)
    return body(self, RESPONSE, bytes)
end


-- How a direction ended, for LOG.
local function how_ended(self, d)
    return not self.headers[d] and 0 or self.ended[d] and 1 or 4
end


-- LOG and the end of the stream. A stream that is not finished keeps what the guest holds for it.
function Stream:finish()
    if self.finished then
        return nil, "closed"
    end
    local filter = self.filter
    local guest = filter.guest
    if wants(self, LOG) then
        deliver(self, LOG, 0, nil, (self.replied and 5 or 1) + lshift(how_ended(self, REQUEST), 8)
                                   + lshift(how_ended(self, RESPONSE), 12))
    end
    self.finished = true
    if self.user ~= 0 then
        guest.on_stream_end(guest.ctx, filter.value, self.user, self.number, 0)
    end
    filter.streams = filter.streams - 1
    if filter.closed then
        filter:close()
    end
    return true
end


return _M
