-- SPDX-License-Identifier: Apache-2.0

-- Libraries and configurations of the host in LuaJIT alone, and what it lends to hooks.
--
-- A LuaJIT callback on a thread that is not running this VM crashes the process. So every entry of the host's table that
-- guests may call from any thread is null, and no feature that needs one is set.

local ffi = require "ffi"
local abi = require "resty.proxy_golang.abi"
local FEATURE = require "resty.proxy_golang.features"

local C = ffi.C
local ffi_new = ffi.new
local ffi_str = ffi.string
local cast = ffi.cast
local tonumber = tonumber
local type = type
local setmetatable = setmetatable
local find = string.find
local band, bor, lshift, bnot = bit.band, bit.bor, bit.lshift, bit.bnot

ffi.cdef [[
void *dlopen(const char *path, int flags);
void *dlsym(void *handle, const char *name);
char *dlerror(void);
void *calloc(size_t n, size_t size);
void free(void *p);
int sigfillset(void *set);
int pthread_sigmask(int how, const void *set, void *old);
int sched_getaffinity(int pid, size_t size, void *mask);
int sched_setaffinity(int pid, size_t size, const void *mask);
]]

local RTLD_NOW, RTLD_NODELETE, SIG_SETMASK = 2, 0x1000, 2
local OPS, SCRATCH, SCRATCH_LIMIT = 64, 8192, 1024 * 1024
local MAX_BODY = 16 * 1024 * 1024

local PHASE = abi.PHASE
local WHOLE = abi.WHOLE

-- `methods`: of filters.
local _M = { methods = {} }

local Guest = {}
local guest_mt = { __index = Guest }
local Filter = _M.methods
local filter_mt = { __index = Filter }


local function mask(...)
    local m = 0ULL
    for i = 1, select("#", ...) do
        m = bor(m, lshift(1ULL, (select(i, ...))))
    end
    return m
end


local FEATURES = mask(FEATURE.BODY_WHOLE_REQUEST, FEATURE.BODY_WHOLE_RESPONSE, FEATURE.EXACT_EOS_REQUEST,
                      FEATURE.EXACT_EOS_RESPONSE, FEATURE.THREAD_AFFINE)
local PHASES = mask(PHASE.REQUEST_HEADERS, PHASE.REQUEST_BODY, PHASE.RESPONSE_HEADERS, PHASE.RESPONSE_BODY, PHASE.LOG)
-- Declared, and never delivered: trailers and WAKE are of features that are clear.
local KNOWN_PHASES = bor(PHASES, mask(3, 6, 8))


local function set_str(to, s)
    to.ptr, to.len, to.flags = s, #s, 0
end


local function text(s)
    return s.ptr ~= nil and ffi_str(s.ptr, s.len) or ""
end


-- ---- Memory that is lent --------------------------------------------------------------------------------------------

-- Of one call at a time: a guest's hook cannot reach Lua but through scratch_more.
local scratch_ops = ffi.gc(cast("pxg_lua_op *", C.calloc(OPS, ffi.sizeof("pxg_lua_op"))), C.free)
local scratch = ffi.gc(cast("uint8_t *", C.calloc(1, SCRATCH)), C.free)
local granted, n_granted, granted_bytes = {}, 0, 0


-- On the thread that runs this VM, inside on_event and on_config_new: the one callback. It raises no error.
local function scratch_more(_, n)
    n = tonumber(n)
    if n == 0 or granted_bytes + n > SCRATCH_LIMIT then
        return nil
    end
    local p = C.calloc(1, n)
    if p == nil then
        return nil
    end
    n_granted = n_granted + 1
    granted[n_granted] = p
    granted_bytes = granted_bytes + n
    return cast("uint8_t *", p)
end


local scratch_more_callback = cast("uint8_t *(*)(uint64_t, uint64_t)", scratch_more)


local function give_back()
    for i = 1, n_granted do
        C.free(granted[i])
        granted[i] = nil
    end
    n_granted, granted_bytes = 0, 0
end


-- ---- Libraries ------------------------------------------------------------------------------------------------------

local loaded = {}
local go_runtime

-- What the file is, before it is loaded (PXG-LOAD-011).
local function examine(path)
    local file, err = io.open(path, "rb")
    if not file then
        return nil, err
    end
    local bytes = file:read("*a")
    file:close()
    local machine = jit.arch == "x64" and 62 or 183
    if not bytes or #bytes < 64 or bytes:sub(1, 4) ~= "\127ELF" then
        return nil, path .. ": found no ELF file, expected a shared object"
    end
    if bytes:byte(5) ~= 2 or bytes:byte(17) ~= 3 or bytes:byte(19) + 256 * bytes:byte(20) ~= machine then
        return nil, path .. ": found an ELF file of another kind or machine, expected a 64-bit shared object for "
                    .. jit.arch
    end
    if not find(bytes, "\0pxg_guest_init_v1\0", 1, true) then
        return nil, path .. ": found no symbol pxg_guest_init_v1, expected a guest of proxy_golang v1"
    end
    return true, find(bytes, "\255 Go buildinf:", 1, true) ~= nil
end


-- Threads that the library starts inherit neither this thread's processors nor a free way for nginx's signals.
local function load_library(path)
    local all, old = ffi_new("uint8_t[128]"), ffi_new("uint8_t[128]")
    local everywhere, mine = ffi_new("uint8_t[128]"), ffi_new("uint8_t[128]")
    ffi.fill(everywhere, 128, 0xff)
    C.sigfillset(all)
    C.pthread_sigmask(SIG_SETMASK, all, old)
    local pinned = C.sched_getaffinity(0, 128, mine) >= 0 and C.sched_setaffinity(0, 128, everywhere) == 0
    local so = C.dlopen(path, RTLD_NOW + RTLD_NODELETE)
    local err = so == nil and ffi_str(C.dlerror()) or nil
    return so, err, function()
        if pinned then
            C.sched_setaffinity(0, 128, mine)
        end
        C.pthread_sigmask(SIG_SETMASK, old, nil)
    end
end


local function missing(want, have)
    local lacks = {}
    for word = 0, 3 do
        local m = band(want[word], bnot(word == 0 and have or 0ULL))
        for b = 0, 63 do
            if band(m, lshift(1ULL, b)) ~= 0 then
                lacks[#lacks + 1] = tostring(word * 64 + b)
            end
        end
    end
    return lacks[1] and table.concat(lacks, ", ")
end


local n_libraries = 0


local function init(path, so)
    local entry = C.dlsym(so, "pxg_guest_init_v1")
    if entry == nil then
        return nil, path .. ": found no symbol pxg_guest_init_v1 after it was loaded"
    end
    -- Never freed: guests keep the address.
    local host = cast("pxg_lua_host *", C.calloc(1, ffi.sizeof("pxg_lua_host")))
    local name = cast("char *", C.calloc(1, 8))
    ffi.copy(name, "luajit")
    n_libraries = n_libraries + 1
    host.size, host.major, host.minor, host.n_workers = ffi.sizeof("pxg_lua_host"), 1, 0, 1
    host.features[0] = FEATURES
    host.name.ptr, host.name.len = name, 6
    host.version.ptr, host.version.len = name, 6
    host.ctx = n_libraries
    host.scratch_more = scratch_more_callback
    local table_ = ffi_new("pxg_lua_guest")
    table_.size = ffi.sizeof("pxg_lua_guest")
    local status = cast("pxg_lua_init", entry)(host, table_)
    if status ~= 0 then
        return nil, path .. ": pxg_guest_init_v1 answered " .. (abi.STATUS[status] or status)
    end
    if table_.major ~= 1 then
        return nil, path .. ": found major version " .. table_.major .. ", expected 1"
    end
    local lacks = missing(table_.required, FEATURES)
    if lacks then
        return nil, path .. ": it requires features that a host in LuaJIT alone lacks: " .. lacks
                    .. " (numbers of spec/03-negotiation.md); use the nginx module"
    end
    if table_.on_config_new == nil or table_.on_config_drop == nil or table_.on_event == nil
       or table_.on_cancel == nil or table_.on_stream_end == nil or table_.n_filters == 0 then
        return nil, path .. ": its table lacks a required hook or has no filter"
    end
    return table_
end


-- jit.off: the guest may call scratch_more, and compiled code must not be called back.
local function call_init(path, so)
    return init(path, so)
end
jit.off(call_init, true)
jit.off(init, true)


function _M.load(path)
    if type(path) ~= "string" or path:sub(1, 1) ~= "/" or find(path, "\0", 1, true) then
        error("bad path: found " .. tostring(path) .. ", expected an absolute path", 2)
    end
    if loaded[path] then
        return loaded[path]
    end
    if ngx and ngx.get_phase() == "init" then
        return nil, "a guest must not be loaded before nginx forks its workers: call this in init_worker_by_lua* or later"
    end
    local ok, go = examine(path)
    if not ok then
        return nil, go
    end
    if go and go_runtime and ngx then
        ngx.log(ngx.WARN, "proxy_golang: ", path, " brings a second Go runtime into this process, after ", go_runtime)
    end
    local so, err, restore = load_library(path)
    if so == nil then
        restore()
        return nil, err
    end
    local t
    t, err = call_init(path, so)
    restore()
    give_back()
    if not t then
        return nil, err
    end
    go_runtime = go and path or go_runtime
    local guest = setmetatable({
        path = path,
        table = t,
        -- What is read from the table would be made anew each time.
        ctx = t.ctx,
        on_event = t.on_event,
        on_stream_end = t.on_stream_end,
        live = {},
        n_streams = 0,
    }, guest_mt)
    if t.on_worker ~= nil then
        t.on_worker(t.ctx, 0, 1)
    end
    loaded[path] = guest
    return guest
end


-- ---- Configurations -------------------------------------------------------------------------------------------------

local function judge_config(guest, o)
    if o.config == 0 or guest.live[tostring(o.config)] then
        return "config: found " .. tostring(o.config) .. ", expected a value that is not 0 and not in use"
    end
    if band(o.subscribe, bnot(KNOWN_PHASES)) ~= 0 then
        return "subscribe: found phases that this version does not have"
    end
    if o.pend_phases ~= 0 then
        return "pend_phases: a host in LuaJIT alone cannot wait for a guest; use the nginx module"
    end
    if o.flags ~= 0 and band(o.flags, bnot(0x8)) ~= 0 then
        return "flags: found " .. o.flags .. ", of which only WANT_PEER_FIELDS is served here"
    end
    for d = 0, 1 do
        if o.body_mode[d] > 1 and o.body_mode[d] ~= WHOLE then
            return "body_mode: found " .. o.body_mode[d] .. ", expected SKIP or WHOLE: bodies are whole here"
        end
    end
    for i = 0, tonumber(o.n_attrs) - 1 do
        if band(o.attrs[i].flags, 1) ~= 0 then
            return "attribute " .. text(o.attrs[i].name) .. " is required, and there are none here"
        end
    end
end


local function config_new(guest, input, o)
    return guest.table.on_config_new(guest.table.ctx, input, o)
end
jit.off(config_new, true)


function Guest:filter(opts)
    if type(opts) ~= "table" or type(opts.filter) ~= "string" then
        error("bad options: expected a table with the filter's name as \"filter\"", 2)
    end
    local name, config = opts.name or opts.filter, opts.config or ""
    local input, o = ffi_new("pxg_lua_config_in"), ffi_new("pxg_lua_config_out")
    input.size, o.size = ffi.sizeof(input), ffi.sizeof(o)
    input.features[0] = FEATURES
    set_str(input.filter, opts.filter)
    set_str(input.name, name)
    set_str(input.bytes, config)
    o.scratch, o.scratch_cap = scratch, SCRATCH
    local status = config_new(self, input, o)
    local why
    if status < 0 then
        local said = text(o.error)
        why = (abi.STATUS[status] or status) .. (said ~= "" and ": " .. said or "")
    else
        why = judge_config(self, o)
        if why and o.config ~= 0 and not self.live[tostring(o.config)] then
            self.table.on_config_drop(self.table.ctx, o.config)
        end
    end
    if why then
        give_back()
        return nil, self.path .. ": filter " .. opts.filter .. ": " .. why
    end
    local max = {}
    for d = 0, 1 do
        local m = tonumber(o.max_body[d])
        max[d] = (m == 0 or m > MAX_BODY) and MAX_BODY or m
    end
    local filter = setmetatable({
        guest = self,
        name = name,
        value = o.config,
        -- By phases of this version, which fit a number.
        subscribe = tonumber(band(o.subscribe, PHASES)),
        mode = { [0] = o.body_mode[0], o.body_mode[1] },
        max_body = max,
        n_attrs = tonumber(o.n_attrs),
        peer = band(o.flags, 0x8) ~= 0,
        open = opts.failure_mode == "open",
        streams = 0,
    }, filter_mt)
    self.live[tostring(o.config)] = filter
    give_back()
    return filter
end


-- The filter takes no further streams; the guest drops it after its last one.
function Filter:close()
    self.closed = true
    if self.streams == 0 and self.value then
        self.guest.live[tostring(self.value)] = nil
        self.guest.table.on_config_drop(self.guest.table.ctx, self.value)
        self.value = nil
    end
end


_M.ops, _M.n_ops = scratch_ops, OPS
_M.scratch, _M.n_scratch = scratch, SCRATCH
_M.give_back = give_back


return _M
