-- SPDX-License-Identifier: Apache-2.0

-- Fields of messages: between Lua's tables and arrays of pxg_field.

local ffi = require "ffi"

local ffi_new = ffi.new
local ffi_str = ffi.string
local lower = string.lower
local byte = string.byte
local type = type
local pairs = pairs
local tostring = tostring

-- The ABI's leaf structs, frozen for v1.
ffi.cdef [[
typedef struct { const char *ptr; uint32_t len; uint32_t flags; } pxg_lua_str;
typedef struct { pxg_lua_str name, value; } pxg_lua_field;
]]

local _M = {}

local COLON = byte(":")

-- PXG_STR_SENSITIVE: never logged.
local SENSITIVE = 0x2
local flags_of = {
    authorization = SENSITIVE,
    ["proxy-authorization"] = SENSITIVE,
    cookie = SENSITIVE,
    ["set-cookie"] = SENSITIVE,
}

local array, room = ffi_new("pxg_lua_field[?]", 64), 64
-- What `array` points to, until the call that copies it has returned.
local held = {}


local function bad(what)
    return nil, "bad field: " .. what
end


local function push(n, name, value)
    local t = type(value)
    if t == "number" then
        value = tostring(value)
    elseif t == "boolean" then
        value = value and "true" or "false"
    elseif t ~= "string" then
        return bad("the value of \"" .. name .. "\" is a " .. t .. ", expected a string, a number or an array of them")
    end
    if n == room then
        local more = ffi_new("pxg_lua_field[?]", room * 2)
        ffi.copy(more, array, room * ffi.sizeof("pxg_lua_field"))
        array, room = more, room * 2
    end
    held[2 * n + 1], held[2 * n + 2] = name, value
    local f = array[n]
    f.name.ptr, f.name.len, f.name.flags = name, #name, 0
    f.value.ptr, f.value.len, f.value.flags = value, #value, flags_of[name] or 0
    return n + 1
end


local function push_all(n, name, value)
    if type(value) ~= "table" then
        return push(n, name, value)
    end
    local err
    for i = 1, #value do
        n, err = push(n, name, value[i])
        if not n then
            return nil, err
        end
    end
    return n
end


-- An array of {name, value}, in their order.
local function from_array(t)
    local n, err = 0
    for pass = 1, 2 do
        for i = 1, #t do
            local name = t[i][1]
            if type(name) ~= "string" then
                return bad("entry " .. i .. " has a " .. type(name) .. " as its name")
            end
            name = lower(name)
            if (byte(name) == COLON) == (pass == 1) then
                n, err = push(n, name, t[i][2])
                if not n then
                    return nil, err
                end
            end
        end
    end
    return n
end


-- {name = value} or {name = {value, ...}}.
local function from_map(t)
    local n, err = 0
    for pass = 1, 2 do
        for name, value in pairs(t) do
            if type(name) ~= "string" then
                return bad("a " .. type(name) .. " as its name")
            end
            name = lower(name)
            if (byte(name) == COLON) == (pass == 1) then
                n, err = push_all(n, name, value)
                if not n then
                    return nil, err
                end
            end
        end
    end
    return n
end


-- The array and its length, valid until the next call; pseudo-headers first, names in lower case.
function _M.pack(t)
    if t == nil then
        return array, 0
    end
    if type(t) ~= "table" then
        return nil, "fields are a table, found a " .. type(t)
    end
    local n, err
    if type(t[1]) == "table" then
        n, err = from_array(t)
    else
        n, err = from_map(t)
    end
    if not n then
        return nil, err
    end
    return array, n
end


local function put(t, name, value)
    local old = t[name]
    if old == nil then
        t[name] = value
    elseif type(old) == "table" then
        old[#old + 1] = value
    else
        t[name] = { old, value }
    end
end


-- {name = value}, or {name = {value, ...}} where a name comes more than once.
function _M.unpack(at, n)
    local t = {}
    for i = 0, n - 1 do
        local f = at[i]
        put(t, ffi_str(f.name.ptr, f.name.len), ffi_str(f.value.ptr, f.value.len))
    end
    return t
end


-- ---- Lists of {name, value}, for the host in LuaJIT alone ------------------------------------------------------------

-- From what `pack` takes.
function _M.list(t)
    local n, err
    if type(t) ~= "table" then
        return nil, "fields are a table, found a " .. type(t)
    end
    n, err = _M.pack(t)
    if not n then
        return nil, err
    end
    local list = {}
    for i = 0, err - 1 do
        list[i + 1] = { held[2 * i + 1], held[2 * i + 2] }
    end
    return list
end


-- For `fill`, which makes it as large as it has to be.
function _M.buffer()
    return { at = ffi_new("pxg_lua_field[?]", 64), room = 64 }
end


-- The buffer's array with the fields of a list, whose strings they are.
function _M.fill(buffer, list)
    local n = #list
    if n > buffer.room then
        buffer.at, buffer.room = ffi_new("pxg_lua_field[?]", 2 * n), 2 * n
    end
    local at = buffer.at
    for i = 1, n do
        local name, value = list[i][1], list[i][2]
        local field = at[i - 1]
        field.name.ptr, field.name.len, field.name.flags = name, #name, 0
        field.value.ptr, field.value.len, field.value.flags = value, #value, flags_of[name] or 0
    end
    return at
end


function _M.map(list)
    local t = {}
    for i = 1, #list do
        put(t, list[i][1], list[i][2])
    end
    return t
end


function _M.set_length(list, n)
    for i = 1, #list do
        if list[i][1] == "content-length" then
            list[i][2] = tostring(n)
            return
        end
    end
    list[#list + 1] = { "content-length", tostring(n) }
end


return _M
