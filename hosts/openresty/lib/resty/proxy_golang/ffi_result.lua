-- SPDX-License-Identifier: Apache-2.0

-- What a guest answered, copied and judged by spec/06-headers.md, 09-replies.md and 10-operations.md, for the host in
-- LuaJIT alone.

local ffi = require "ffi"

local ffi_str = ffi.string
local tonumber = tonumber
local find = string.find
local sub = string.sub
local concat = table.concat
local floor = math.floor

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


-- The bytes; an OWNED buffer is released here, whatever becomes of the result (PXG-MEM-006).
local function buf(b)
    local s = str(b.bytes)
    local flags = b.bytes.flags
    if floor(flags / OWNED) % 2 == 1 and b.release ~= nil then
        b.release(b.ctx)
    end
    return s, flags
end


local function has(flags, bit)
    return floor(flags / bit) % 2 == 1
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

local function copy_ops(out)
    local ops, n = {}, tonumber(out.n_ops)
    for i = 0, n - 1 do
        local o = out.ops[i]
        local value, flags = buf(o.val)
        ops[i + 1] = {
            kind = o.kind,
            flags = o.flags,
            target = o.target,
            n = tonumber(o.u0),
            key = str(o.key),
            value = value,
            absent = has(flags, ABSENT),
        }
    end
    return ops
end


local function copy_reply(r)
    local reply = { status = r.status, flags = r.flags, fields = {}, details = str(r.details) }
    local parts = {}
    for i = 0, tonumber(r.n_body) - 1 do
        parts[i + 1] = buf(r.body[i])
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


local function edit(list, o, view, request)
    local why
    if o.kind == SET or o.kind == ADD then
        why = bad_field(o.key, o.value, o.kind == SET, request)
        if not why and o.absent then
            why = "found an ABSENT value"
        end
        if why then
            return why
        end
        local index = 0
        if o.kind == SET then
            for i = #list, 1, -1 do
                if list[i][1] == o.key then
                    table.remove(list, i)
                    index = i
                end
            end
            if sub(o.key, 1, 1) == ":" and index == 0 then
                return "found " .. o.key .. ", which this message does not have"
            end
        end
        table.insert(list, index > 0 and index or #list + 1, { o.key, o.value })
    elseif o.kind == DELETE then
        why = bad_field(o.key, nil, false, request)
        if why then
            return why
        end
        for i = #list, 1, -1 do
            if list[i][1] == o.key then
                table.remove(list, i)
            end
        end
    else
        local field = view[o.n + 1]
        if not field then
            return "found index " .. o.n .. ", expected one below " .. #view
        end
        why = bad_field(field[1], o.kind == SET_AT and o.value or nil, o.kind == SET_AT, request)
        if why then
            return why
        end
        for i = #list, 1, -1 do
            if list[i] == field then
                table.remove(list, i)
                if o.kind == SET_AT then
                    -- The view's entry stands for the new one from here on.
                    view[o.n + 1] = { field[1], o.value }
                    table.insert(list, i, view[o.n + 1])
                end
            end
        end
    end
end


local function body_op(o, body, at, parts)
    if o.kind == INJECT then
        parts[#parts + 1] = o.value
        return at
    end
    if o.n > #body - at then
        return nil, "found PASS or DROP of " .. o.n .. " bytes, expected at most " .. #body - at
    end
    if o.kind == PASS then
        parts[#parts + 1] = sub(body, at + 1, at + o.n)
    end
    return at + o.n
end


-- All or nothing: the lists that a decision holds are new ones.
local function apply(ops, c)
    local list, view, parts, at
    for i = 1, #ops do
        local o = ops[i]
        local why
        if o.flags > MUST * 3 then
            why = "found flags " .. o.flags
        elseif o.kind >= SET and o.kind <= DELETE_AT and o.target == 0 and c.phase ~= LOG then
            if not list then
                list, view = {}, {}
                for k = 1, #c.fields do
                    list[k], view[k] = c.fields[k], c.fields[k]
                end
            end
            why = edit(list, o, view, c.request)
        elseif o.kind >= PASS and o.kind <= INJECT then
            if not c.body then
                why = "found PASS, DROP or INJECT outside of a body"
            else
                parts, at = parts or {}, at or 0
                at, why = body_op(o, c.body, at, parts)
            end
        elseif o.kind == METRIC then
            why = "found METRIC, expected none: this host has no pxg.metrics/1"
        elseif o.kind == 0 or has(o.flags, MUST) then
            why = "found kind " .. o.kind .. (o.kind <= LAST_KIND and ", which this host cannot do" or "")
        end
        if why then
            return nil, "operation " .. i - 1 .. ": " .. why
        end
    end
    if list and #list > MAX_FIELDS then
        return nil, "found " .. #list .. " fields, over the limit of " .. MAX_FIELDS
    end
    if parts then
        parts[#parts + 1] = sub(c.body, at + 1)
    end
    return { fields = list, body = parts and concat(parts) }
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


-- A decision, or nil and why it is none. Everything that the guest lent has been read when this returns.
function _M.read(out, c)
    local action, n_ops = out.action, tonumber(out.n_ops)
    local ops = copy_ops(out)
    local reply = out.reply ~= nil and copy_reply(out.reply) or nil
    local why = judge(out, action, reply ~= nil, n_ops)
    if why then
        return nil, why
    end
    local decision = {
        unsubscribe = out.unsubscribe,
        mode = { [0] = out.body_mode[0], out.body_mode[1] },
    }
    if action == RESET then
        decision.action = "reset"
        return decision
    end
    if action == REPLY then
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
    local changes
    changes, why = apply(ops, c)
    if not changes then
        return nil, why
    end
    decision.action = "continue"
    decision.fields, decision.body = changes.fields, changes.body
    return decision
end



return _M
