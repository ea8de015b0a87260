-- SPDX-License-Identifier: Apache-2.0

-- A host in LuaJIT alone, for places where no module can be added to nginx. Synchronous, whole bodies only.
--
-- A LuaJIT callback on a thread that is not running this VM crashes the process. So every entry of the host's table that
-- guests may call from any thread is null, and no feature that needs one is set.

local ffi = require "ffi"
local fields = require "resty.proxy_golang.fields"
local abi = require "resty.proxy_golang.abi"
local result = require "resty.proxy_golang.ffi_result"

local C = ffi.C
local ffi_new = ffi.new
local ffi_str = ffi.string
local cast = ffi.cast
local tonumber = tonumber
local type = type
local setmetatable = setmetatable
local find = string.find
local band, bor, lshift, bnot = bit.band, bit.bor, bit.lshift, bit.bnot
local FEATURE = require "resty.proxy_golang.features"

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

local PHASE = { REQUEST_HEADERS = 1, REQUEST_BODY = 2, RESPONSE_HEADERS = 4, RESPONSE_BODY = 5, LOG = 7 }
local EV = { END_STREAM = 0x1, BODY_END = 0x2, WHOLE_BODY = 0x4, HEADERS_HELD = 0x8, OVER_LIMIT = 0x10, CAN_REPLY = 0x20 }
local WHOLE = 3
local REQUEST, RESPONSE = 0, 1

local _M = { _VERSION = "1.0.0" }

local Guest = {}
local guest_mt = { __index = Guest }
local Filter = {}
local filter_mt = { __index = Filter }
local Stream = {}
local stream_mt = { __index = Stream }


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
    local guest = setmetatable({ path = path, table = t, live = {}, n_streams = 0 }, guest_mt)
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
        subscribe = o.subscribe,
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


-- ---- Streams --------------------------------------------------------------------------------------------------------

function Filter:stream()
    if self.closed then
        return nil, "the filter is closed"
    end
    self.streams = self.streams + 1
    self.guest.n_streams = self.guest.n_streams + 1
    return setmetatable({
        filter = self,
        number = self.guest.n_streams,
        user = 0ULL,
        subscribe = self.subscribe,
        mode = { [0] = self.mode[0], self.mode[1] },
        headers = {},
        ended = {},
    }, stream_mt)
end


local function on_event(t, ev, out)
    t.on_event(t.ctx, ev, out)
end
jit.off(on_event, true)


local ev, out = ffi_new("pxg_lua_event"), ffi_new("pxg_lua_result")
local chunk = ffi_new("pxg_lua_str[1]")
local absent = ffi_new("pxg_lua_str[64]")
for i = 0, 63 do
    absent[i].flags = 1
end


-- One event; the guest's decision, copied, or nil and why it is none.
local function deliver(self, phase, flags, body, arg)
    local filter = self.filter
    local d = phase >= PHASE.RESPONSE_HEADERS and RESPONSE or REQUEST
    ffi.fill(ev, ffi.sizeof(ev))
    ffi.fill(out, ffi.sizeof(out))
    ffi.fill(scratch_ops, OPS * ffi.sizeof("pxg_lua_op"))
    ev.size, ev.phase, ev.flags = ffi.sizeof(ev), phase, flags
    ev.config, ev.user, ev.stream, ev.arg = filter.value, self.user, self.number, arg or 0
    local n, packed, peer
    if self.headers[d] then
        packed, n = fields.copy(self.headers[d])
        ev.fields, ev.n_fields = packed, n
    end
    if (phase == PHASE.LOG or filter.peer and d == RESPONSE) and self.headers[REQUEST] then
        peer, n = fields.copy(self.headers[REQUEST])
        ev.peer_fields, ev.n_peer_fields = peer, n
    end
    if body and #body > 0 then
        set_str(chunk[0], body)
        ev.chunks, ev.n_chunks = chunk, 1
    end
    if filter.n_attrs > 0 and filter.n_attrs <= 64 then
        ev.attrs, ev.n_attrs = absent, filter.n_attrs
    end
    out.size, out.user = ffi.sizeof(out), self.user
    out.scratch_ops, out.scratch_ops_cap = scratch_ops, OPS
    out.scratch, out.scratch_cap = scratch, SCRATCH
    on_event(filter.guest.table, ev, out)
    self.user = out.user
    local decision, err = result.read(out, {
        phase = phase,
        flags = flags,
        fields = self.headers[d],
        body = body,
        request = d == REQUEST,
    })
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
    self.subscribe = band(self.subscribe, bnot(decision.unsubscribe))
    for i = 0, 1 do
        if decision.mode[i] ~= 0 then
            self.mode[i] = decision.mode[i]
        end
    end
    return true
end


local function wants(self, phase)
    return not self.failed and band(self.subscribe, lshift(1ULL, phase)) ~= 0
end


local function holds(self, d)
    return self.mode[d] == WHOLE and wants(self, d == REQUEST and PHASE.REQUEST_BODY or PHASE.RESPONSE_BODY)
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
    self.left = false
    local phase = d == REQUEST and PHASE.REQUEST_HEADERS or PHASE.RESPONSE_HEADERS
    if wants(self, phase) then
        local decision
        decision, err = deliver(self, phase, EV.CAN_REPLY + (end_stream and EV.END_STREAM or 0))
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
    local flags = EV.HEADERS_HELD + EV.BODY_END + EV.END_STREAM + EV.CAN_REPLY
                  + (#bytes > self.filter.max_body[d] and EV.OVER_LIMIT or EV.WHOLE_BODY)
    local decision, err = deliver(self, d == REQUEST and PHASE.REQUEST_BODY or PHASE.RESPONSE_BODY, flags, bytes)
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


-- LOG and the end of the stream. A stream that is not finished keeps what the guest holds for it.
function Stream:finish()
    if self.finished then
        return nil, "closed"
    end
    local filter = self.filter
    local t = filter.guest.table
    if wants(self, PHASE.LOG) then
        local done = function(d)
            return self.headers[d] == nil and 0 or self.ended[d] and 1 or 4
        end
        deliver(self, PHASE.LOG, 0, nil, (self.replied and 5 or 1) + lshift(done(REQUEST), 8) + lshift(done(RESPONSE), 12))
    end
    self.finished = true
    if self.user ~= 0 then
        t.on_stream_end(t.ctx, filter.value, self.user, self.number, 0)
    end
    filter.streams = filter.streams - 1
    if filter.closed then
        filter:close()
    end
    return true
end



return _M
