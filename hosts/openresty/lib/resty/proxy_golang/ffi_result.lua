-- SPDX-License-Identifier: Apache-2.0

-- What a guest answered, copied and judged by spec/06-headers.md, 09-replies.md and 10-operations.md, for the host in
-- LuaJIT alone.

local ffi = require "ffi"

local ffi_str = ffi.string
local tonumber = tonumber
local find = string.find
local sub = string.sub
local concat = table.concat
local insert, remove = table.insert, table.remove
local band = bit.band

local _M = {}

local OWNED, ABSENT = 0x20, 0x1
local MUST = 0x1
local SET, ADD, DELETE, SET_AT, DELETE_AT, PASS, INJECT = 1, 2, 3, 4, 5, 8, 10
local METRIC, LAST_KIND = 17, 18
local CONTINUE, PENDING, MORE, REPLY, RESET, ERROR = 1, 2, 3, 4, 5, 6
local RESIZES, FLUSH = 0x1, 0x2
local LOG = 7
-- As the other hosts of the project.
local MAX_OPS, MAX_FIELDS = 4096, 256

local HOST_OWNS = {}
for name in ("connection content-length host keep-alive proxy-connection te trailer transfer-encoding upgrade expect")
            :gmatch("%S+") do
    HOST_OWNS[name] = true
end

local PSEUDO = {
    [":method"] = "^[!#$%%&'*+%-.^_|~`%w]+$",
    [":scheme"] = "^https?$",
    [":authority"] = "^[%w%-._~%%!$&'()*+,;=:%[%]]+$",
    [":path"] = "^[/*][\33\34\36-\126]*$",
    [":status"] = "^[2-5]%d%d$",
}


local function str(s)
    return s.ptr ~= nil and ffi_str(s.ptr, s.len) or ""
end


local function has(flags, bits)
    return band(flags, bits) ~= 0
end


local function bad_value(value)
    return find(value, "[%z\1-\8\10-\31\127]") or find(value, "^[ \t]") or find(value, "[ \t]$")
end


-- What is wrong with a field that comes from a guest, or nil.
local function bad_field(name, value, may_pseudo, request)
    if sub(name, 1, 1) == ":" then
        local grammar = PSEUDO[name]
        if not may_pseudo or not grammar or (name == ":status") == request then
            return "found the pseudo-header " .. name .. ", expected one that can be set here"
        end
        if value and not find(value, grammar) or name == ":path" and value ~= "*" and sub(value or "/", 1, 1) == "*" then
            return "found a value of " .. name .. " that is none"
        end
        return nil
    end
    if not find(name, "^[!#$%%&'*+%-.^_|~`%d%l]+$") then
        return "found a name that is none: " .. name
    end
    if HOST_OWNS[name] then
        return "found " .. name .. ", which the host owns"
    end
    if value and bad_value(value) then
        return "found a value of " .. name .. " with bytes that no value has"
    end
end


-- ---- Copying --------------------------------------------------------------------------------------------------------

-- An OWNED buffer is given back, whatever becomes of the result (PXG-MEM-006).
local function release(b)
    if has(b.bytes.flags, OWNED) and b.release ~= nil then
        b.release(b.ctx)
    end
end


local function release_all(out)
    for i = 0, tonumber(out.n_ops) - 1 do
        release(out.ops[i].val)
    end
    if out.reply ~= nil then
        for i = 0, tonumber(out.reply.n_body) - 1 do
            release(out.reply.body[i])
        end
    end
end


local function copy_reply(r)
    local reply = { status = r.status, flags = r.flags, fields = {}, details = str(r.details) }
    local parts = {}
    for i = 0, tonumber(r.n_body) - 1 do
        parts[i + 1] = str(r.body[i].bytes)
    end
    reply.body = concat(parts)
    for i = 0, tonumber(r.n_fields) - 1 do
        reply.fields[i + 1] = { str(r.fields[i].name), str(r.fields[i].value) }
    end
    return reply
end


-- ---- Judging and applying ---------------------------------------------------------------------------------------------

local function judge_reply(reply)
    if reply.status < 200 or reply.status > 599 then
        return "the reply's status: found " .. reply.status .. ", expected 200 to 599"
    end
    if has(reply.flags, 0x2) then
        return "the reply is OPEN, which needs the feature STREAM_REPLY"
    end
    if #reply.fields > MAX_FIELDS then
        return "the reply has more than " .. MAX_FIELDS .. " fields"
    end
    for i = 1, #reply.fields do
        local why = bad_field(reply.fields[i][1], reply.fields[i][2], false)
        if why then
            return "the reply's fields: " .. why
        end
    end
end


local function headers_of(reply)
    local t = {}
    for i = 1, #reply.fields do
        local name, value = reply.fields[i][1], reply.fields[i][2]
        local old = t[name]
        if old == nil then
            t[name] = value
        elseif type(old) == "table" then
            old[#old + 1] = value
        else
            t[name] = { old, value }
        end
    end
    if reply.status ~= 204 and reply.status ~= 304 then
        t["content-length"] = tostring(#reply.body)
    else
        reply.body = ""
    end
    return t
end


local function set(list, name, value, request)
    local why = bad_field(name, value, true, request)
    if why then
        return why
    end
    local index = 0
    for i = #list, 1, -1 do
        if list[i][1] == name then
            remove(list, i)
            index = i
        end
    end
    if sub(name, 1, 1) == ":" and index == 0 then
        return "found " .. name .. ", which this message does not have"
    end
    insert(list, index > 0 and index or #list + 1, { name, value })
end


local function delete(list, name, request)
    local why = bad_field(name, nil, false, request)
    if why then
        return why
    end
    for i = #list, 1, -1 do
        if list[i][1] == name then
            remove(list, i)
        end
    end
end


-- `view`: what the indices stand for, changed where an operation has put another field in the place of one.
local function edit_at(list, kind, n, value, view, request)
    local field = view[n + 1]
    if not field then
        return "found index " .. n .. ", expected one below " .. #view
    end
    local why = bad_field(field[1], kind == SET_AT and value or nil, kind == SET_AT, request)
    if why then
        return why
    end
    for i = #list, 1, -1 do
        if list[i] == field then
            remove(list, i)
            if kind == SET_AT then
                view[n + 1] = { field[1], value }
                insert(list, i, view[n + 1])
            end
        end
    end
end


-- `view` is null until an index is used.
local function edit(list, o, view, request)
    local kind = o.kind
    if kind == SET or kind == ADD then
        if has(o.val.bytes.flags, ABSENT) then
            return "found an ABSENT value"
        end
        local name, value = str(o.key), str(o.val.bytes)
        if kind == SET then
            return set(list, name, value, request)
        end
        local why = bad_field(name, value, false, request)
        if not why then
            list[#list + 1] = { name, value }
        end
        return why
    end
    if kind == DELETE then
        return delete(list, str(o.key), request)
    end
    return edit_at(list, kind, tonumber(o.u0), str(o.val.bytes), view, request)
end


local function copy(list)
    local to = {}
    for i = 1, #list do
        to[i] = list[i]
    end
    return to
end


local function body_op(o, body, at, parts)
    local kind, n = o.kind, tonumber(o.u0)
    if kind == INJECT then
        parts[#parts + 1] = str(o.val.bytes)
        return at
    end
    if n > #body - at then
        return nil, "found PASS or DROP of " .. n .. " bytes, expected at most " .. #body - at
    end
    if kind == PASS then
        parts[#parts + 1] = sub(body, at + 1, at + n)
    end
    return at + n
end


-- What the operations make of a list of fields and of a body: new ones, or nil where they stay. All or nothing: else false
-- and why.
local function apply(out, n_ops, phase, fields, body, request)
    local list, view, parts
    local at = 0
    for i = 0, n_ops - 1 do
        local o = out.ops[i]
        local kind, why = o.kind
        if o.flags > MUST * 3 then
            why = "found flags " .. o.flags
        elseif kind >= SET and kind <= DELETE_AT and o.target == 0 and phase ~= LOG and fields then
            list = list or copy(fields)
            if kind >= SET_AT then
                view = view or copy(fields)
            end
            why = edit(list, o, view, request)
        elseif kind >= PASS and kind <= INJECT then
            if not body then
                why = "found PASS, DROP or INJECT outside of a body"
            else
                parts = parts or {}
                at, why = body_op(o, body, at, parts)
            end
        elseif kind == METRIC then
            why = "found METRIC, expected none: this host has no pxg.metrics/1"
        elseif kind == 0 or has(o.flags, MUST) then
            why = "found kind " .. kind .. (kind <= LAST_KIND and ", which this host cannot do" or "")
        end
        if why then
            return false, "operation " .. i .. ": " .. why
        end
    end
    if list and #list > MAX_FIELDS then
        return false, "found " .. #list .. " fields, over the limit of " .. MAX_FIELDS
    end
    if parts then
        parts[#parts + 1] = sub(body, at + 1)
    end
    return list, parts and concat(parts)
end


local function judge(out, action, has_reply, n_ops)
    if action == PENDING then
        return "the guest answered PENDING, which a host in LuaJIT alone cannot serve: use the nginx module"
    end
    if action == MORE then
        return "the guest answered MORE, and there is no more to bring: bodies are whole here"
    end
    if action == ERROR then
        local said = str(out.error)
        return "the guest failed" .. (said ~= "" and ": " .. said or "")
    end
    if action < CONTINUE or action > ERROR then
        return "the action: found " .. action .. ", expected 1 to 6"
    end
    if has_reply ~= (action == REPLY) then
        return has_reply and "a reply beside action " .. action or "REPLY without a reply"
    end
    if has(out.flags, RESIZES) then
        return "RESIZES needs a feature that this host lacks"
    end
    if out.flags >= 2 * FLUSH then
        return "flags: found " .. out.flags .. ", expected none but FLUSH"
    end
    if n_ops > MAX_OPS then
        return "found " .. n_ops .. " operations, over the limit of " .. MAX_OPS
    end
    for d = 0, 1 do
        local mode = out.body_mode[d]
        if mode ~= 0 and mode ~= 1 and mode ~= 3 then
            return "body_mode: found " .. mode .. ", expected SKIP or WHOLE: bodies are whole here"
        end
    end
end


local function decide(out, phase, fields, body, request)
    local action, n_ops = out.action, tonumber(out.n_ops)
    local why = judge(out, action, out.reply ~= nil, n_ops)
    if why then
        return nil, why
    end
    local decision = {
        action = "continue",
        -- Phases of this version fit a number.
        unsubscribe = tonumber(band(out.unsubscribe, 0xffffULL)),
        request_mode = out.body_mode[0],
        response_mode = out.body_mode[1],
        fields = nil, body = nil, reply = nil,
    }
    if action == RESET then
        decision.action = "reset"
        return decision
    end
    if action == REPLY then
        local reply = copy_reply(out.reply)
        why = judge_reply(reply)
        if why then
            return nil, why
        end
        decision.action = "reply"
        decision.reply = {
            status = reply.status,
            headers = headers_of(reply),
            body = reply.body,
            details = reply.details ~= "" and reply.details or nil,
        }
        return decision
    end
    local list, bytes = apply(out, n_ops, phase, fields, body, request)
    if list == false then
        return nil, bytes
    end
    decision.fields, decision.body = list, bytes
    return decision
end


-- A decision, or nil and why it is none. Everything that the guest lent has been read when this returns. `fields` and
-- `body`: what the guest was shown, or nil.
function _M.read(out, phase, fields, body, request)
    local decision, why = decide(out, phase, fields, body, request)
    release_all(out)
    return decision, why
end


return _M
