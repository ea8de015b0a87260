-- SPDX-License-Identifier: Apache-2.0

-- A reverse proxy in content_by_lua*, with a chain of guests around it: every phase of a guest may pend, bodies pass as
-- they come, and nothing is buffered that a guest does not hold.
--
--   init_worker_by_lua_block { require("proxy").load{ { name = "policy", guest = "/g.so", filter = "header-policy" } } }
--   location / {
--     content_by_lua_block { require("proxy").serve({ "policy" }, "127.0.0.1", 9000) }
--     log_by_lua_block     { require("proxy").log() }
--   }

local pxg = require "resty.proxy_golang"
local semaphore = require "ngx.semaphore"

local _M = {}

-- What this program does not do.
local WITHOUT = { "TRAILERS_IN_REQUEST", "TRAILERS_IN_RESPONSE", "TRAILERS_OUT_REQUEST", "TRAILERS_OUT_RESPONSE",
                  "PEND_REQUEST_TRAILERS", "PEND_RESPONSE_TRAILERS" }
local PIECE = 65536
local PER_CONNECTION = { "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer",
                         "expect" }

-- What a client does wrong to its body.
local CLIENT = { ["timeout"] = true, ["client aborted"] = true }

local filters = {}


-- Each of `list` is what pxg.load takes, or has config_file instead of config.
function _M.load(list)
    for _, opts in ipairs(list) do
        if opts.config_file then
            local file = assert(io.open(opts.config_file, "rb"))
            opts.config = file:read("*a")
            file:close()
        end
        opts.without = WITHOUT
        opts.attributes = true
        local filter, err = pxg.load(opts)
        if not filter then
            ngx.log(ngx.ERR, "filter ", opts.name, " is refused: ", err)
        end
        filters[opts.name] = filter
    end
    ngx.log(ngx.NOTICE, "proxy: worker ready")
end


local function without_connection(headers)
    for _, name in ipairs(PER_CONNECTION) do
        headers[name] = nil
    end
    return headers
end


-- ---- The client's side ----------------------------------------------------------------------------------------------

local function request_head()
    local headers = ngx.req.get_headers(0)
    local view = without_connection(headers)
    view[":authority"] = pxg.authority()
    view.host = nil
    view[":method"], view[":scheme"] = ngx.req.get_method(), ngx.var.scheme
    -- As nginx chose the location by it: see resty.proxy_golang.phases.
    view[":path"] = pxg.path()
    return view, not pxg.request_ends()
end


local function send_head(headers)
    ngx.status = tonumber(headers[":status"])
    if not headers["content-type"] then
        ngx.header["content-type"] = nil
    end
    for name, value in pairs(without_connection(headers)) do
        if name:sub(1, 1) ~= ":" then
            ngx.header[name] = value
        end
    end
    return ngx.send_headers()
end


-- ---- The upstream's side --------------------------------------------------------------------------------------------

local function write_head(sock, headers, body_follows)
    local lines = { headers[":method"] .. " " .. headers[":path"] .. " HTTP/1.1", "Host: " .. headers[":authority"] }
    for name, value in pairs(headers) do
        if name:sub(1, 1) ~= ":" then
            for _, v in ipairs(type(value) == "table" and value or { value }) do
                lines[#lines + 1] = name .. ": " .. v
            end
        end
    end
    local chunked = body_follows and not headers["content-length"]
    if chunked then
        lines[#lines + 1] = "Transfer-Encoding: chunked"
    end
    lines[#lines + 1] = "Connection: close\r\n\r\n"
    return sock:send(table.concat(lines, "\r\n")), chunked
end


local function read_head(sock)
    while true do
        local line, err = sock:receive("*l")
        if not line then
            return nil, err
        end
        local status = line:match("^HTTP/1%.[01] (%d%d%d)")
        if not status then
            return nil, "no status line"
        end
        local headers = {}
        while true do
            line, err = sock:receive("*l")
            if not line then
                return nil, err
            end
            if line == "" then
                break
            end
            local name, value = line:match("^([^:]+):[ \t]*(.-)[ \t]*$")
            if not name then
                return nil, "no field"
            end
            headers[#headers + 1] = { name:lower(), value }
        end
        if status:sub(1, 1) ~= "1" then
            return status, headers
        end
    end
end


local function chunked_reader(sock)
    local left = 0
    return function()
        if left == 0 then
            local line, err = sock:receive("*l")
            left = line and tonumber(line:match("^%x+"), 16)
            if not left then
                return nil, err or "no chunk"
            end
            if left == 0 then
                repeat
                    line, err = sock:receive("*l")
                until not line or line == ""
                return line, line and true or err
            end
        end
        local bytes, err = sock:receiveany(math.min(left, PIECE))
        if not bytes then
            return nil, err
        end
        left = left - #bytes
        if left == 0 and not sock:receive(2) then
            return nil, "closed"
        end
        return bytes, false
    end
end


local function response_reader(sock, length, chunked)
    if chunked then
        return chunked_reader(sock)
    end
    return function()
        local bytes, err = sock:receiveany(length and math.min(length, PIECE) or PIECE)
        if not bytes then
            if err == "closed" and not length then
                return "", true
            end
            return nil, err
        end
        length = length and length - #bytes
        return bytes, length == 0
    end
end


-- ---- Between them ---------------------------------------------------------------------------------------------------

local function new_exchange(stream, host, port)
    return { stream = stream, sock = ngx.socket.tcp(), host = host, port = port, sent = semaphore.new() }
end


-- Takes an outcome of the request on. False: it is over, by ex.reply or ex.failed.
local function request_on(ex, o, err, body_follows)
    if not o then
        ex.failed = err
        return false
    end
    if o.action == "reply" then
        ex.reply = o.reply
        return false
    end
    if o.headers then
        local ok, chunked
        ok, err = ex.sock:connect(ex.host, ex.port)
        if ok then
            ok, chunked = write_head(ex.sock, o.headers, body_follows)
        end
        if not ok then
            ex.no_upstream = err or chunked
        end
        ex.chunked = chunked
        ex.sent:post()
    end
    if ex.no_upstream then
        return true
    end
    if o.body ~= "" then
        ex.sock:send(ex.chunked and { ("%x\r\n"):format(#o.body), o.body, "\r\n" } or o.body)
    end
    if o.last and ex.chunked then
        ex.sock:send("0\r\n\r\n")
    end
    return true
end


local function pump_request(ex, view, body_follows)
    local o, err = ex.stream:request_headers(view, not body_follows)
    if not request_on(ex, o, err, body_follows) then
        return
    end
    if not body_follows then
        return
    end
    repeat
        o, err = ex.stream:read_request_body()
        if not o and CLIENT[err] then
            ex.failed = "client"
            return
        end
        if not request_on(ex, o, err, true) then
            return
        end
    until o.last
end


local function response_on(ex, o, err)
    if not o then
        ex.failed = err
        return false
    end
    if o.action == "reply" then
        ex.reply = o.reply
        return false
    end
    if o.headers and not send_head(o.headers) then
        ex.failed = "client"
        return false
    end
    if o.body ~= "" and ngx.req.get_method() ~= "HEAD" then
        ngx.print(o.body)
        if not ngx.flush(true) then
            ex.failed = "client"
            return false
        end
    end
    return true
end


local function bad_gateway(ex, why)
    ngx.log(ngx.WARN, "upstream: ", why)
    local o, err = ex.stream:response_headers({ [":status"] = 502, ["content-length"] = 0 }, true, true)
    return response_on(ex, o, err)
end


local function pump_response(ex)
    ex.sent:wait(86400)
    if ex.no_upstream then
        return bad_gateway(ex, ex.no_upstream)
    end
    local status, headers = read_head(ex.sock)
    if not status then
        return bad_gateway(ex, headers)
    end
    local length, chunked
    local view = { { ":status", status } }
    for _, f in ipairs(headers) do
        if f[1] == "content-length" then
            length = tonumber(f[2])
        end
        chunked = chunked or f[1] == "transfer-encoding"
        if f[1] ~= "connection" and f[1] ~= "transfer-encoding" and f[1] ~= "keep-alive" then
            view[#view + 1] = f
        end
    end
    local bodyless = ngx.req.get_method() == "HEAD" or status == "204" or status == "304" or length == 0
    local o, err = ex.stream:response_headers(view, bodyless)
    if not response_on(ex, o, err) or bodyless then
        return
    end
    local read, last = response_reader(ex.sock, length, chunked), false
    while not last do
        local bytes
        bytes, last = read()
        if not bytes then
            ex.failed, ex.cause = "reset", "upstream_reset"
            return
        end
        o, err = ex.stream:response_body(bytes, last)
        if not response_on(ex, o, err) then
            return
        end
    end
end


function _M.serve(names, host, port)
    local chain = {}
    for i, name in ipairs(names) do
        chain[i] = filters[name]
        if not chain[i] then
            return ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
        end
    end
    local stream = pxg.stream(chain, { trailers = false })
    local view, body_follows = request_head()
    local ex = new_exchange(stream, host, port)
    ngx.ctx.exchange = ex
    ex.sock:settimeout(86400000)
    local request = ngx.thread.spawn(pump_request, ex, view, body_follows)
    local response = ngx.thread.spawn(function()
        pump_response(ex)
        ex.answered = true
    end)
    ngx.thread.wait(request, response)
    if not ex.reply and not ex.failed and not ex.answered then
        ngx.thread.wait(response)
    end
    ngx.thread.kill(request)
    ngx.thread.kill(response)
    ex.sock:close()
    if ex.reply then
        return pxg.respond(ex.reply)
    end
    if ex.failed then
        return ngx.exit(444)
    end
end


-- For log_by_lua*: the end of the stream, with its cause.
function _M.log()
    local ex = ngx.ctx.exchange
    if ex then
        ex.stream:finish(ex.cause or (ngx.status == 499 or ex.failed == "client") and "client_abort" or "complete")
    end
end


return _M
