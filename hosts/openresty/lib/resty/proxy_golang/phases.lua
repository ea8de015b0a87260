-- SPDX-License-Identifier: Apache-2.0

-- The request that nginx is serving, put through a stream phase by phase.

local core = require "resty.proxy_golang.stream"
local filters = require "resty.proxy_golang.filter"

local ngx = ngx
local type = type
local pairs = pairs
local tonumber = tonumber
local sub = string.sub
local find = string.find
local match = string.match
local upper = string.upper
local gsub = string.gsub
local format = string.format
local byte = string.byte
local char = string.char
local open = io.open

local _M = {}

-- In ngx.ctx, which an internal redirect empties: the stream then ends with its request.
local KEY = "resty.proxy_golang"

-- nginx's own: Lua neither sees their final values nor may set them.
local NGINX_OWNS = {
    ["connection"] = true,
    ["keep-alive"] = true,
    ["transfer-encoding"] = true,
}


local function set_response(status, headers)
    ngx.status = status
    for name in pairs(ngx.resp.get_headers(0)) do
        if not headers[name] and not NGINX_OWNS[name] then
            ngx.header[name] = nil
        end
    end
    if not headers["content-type"] then
        ngx.header["content-type"] = nil
    end
    for name, value in pairs(headers) do
        if not NGINX_OWNS[name] and sub(name, 1, 1) ~= ":" then
            ngx.header[name] = value
        end
    end
end


-- Ends the request with a guest's reply. Returns only with an error, or where the phase goes on.
function _M.respond(reply)
    if type(reply) ~= "table" or not tonumber(reply.status) then
        error("bad reply: expected the member \"reply\" of an outcome", 2)
    end
    if ngx.headers_sent then
        return nil, "the response's headers have been sent"
    end
    core.no_continue()
    set_response(reply.status, reply.headers or {})
    local sent, err
    if reply.body and #reply.body > 0 then
        sent, err = ngx.print(reply.body)
    else
        sent, err = ngx.send_headers()
    end
    if not sent then
        return nil, err
    end
    return ngx.exit(ngx.HTTP_OK)
end


-- ---- Requests -------------------------------------------------------------------------------------------------------

local function escape(c)
    return format("%%%02X", byte(c))
end


-- The path that nginx has chosen the location by, so that a guest judges what is served and not another spelling of it.
local function path()
    local args = ngx.var.args
    return gsub(ngx.var.uri, "[^%w/%-._~!$&'()*+,;=:@]", escape) .. (args and "?" .. args or "")
end


_M.path = path


-- That of an absolute target counts and not the field Host (RFC 9112, 3.2.2).
-- Not by ngx.var.http_host: where nginx's configuration names it, too, the value would stay behind a change.
local function authority_of(headers)
    local host = match(ngx.var.request or "", "^%S+ %a[%w+.-]*://([^/?#%s]+)") or headers.host
    return type(host) == "string" and host ~= "" and host or ngx.var.host
end


function _M.authority()
    return authority_of(ngx.req.get_headers(0))
end


local function request_head()
    local headers = ngx.req.get_headers(0)
    local view = {
        [":method"] = ngx.req.get_method(),
        [":scheme"] = ngx.var.scheme,
        [":path"] = path(),
        [":authority"] = authority_of(headers),
    }
    for name, value in pairs(headers) do
        if name ~= "host" then
            view[name] = value == true and "" or value
        end
    end
    return view, headers.host
end


local PIECE = 65536


-- The body takes the place of the one that nginx has, from its byte `from` on.
local function rewrite_from(file, from)
    ngx.req.init_body()
    file:seek("set", 0)
    while from > 0 do
        local bytes = file:read(math.min(from, PIECE))
        if not bytes then
            return nil, "the request's body became shorter in its file"
        end
        ngx.req.append_body(bytes)
        from = from - #bytes
    end
    return true
end


-- Piece by piece, so that there is never more of it in memory than a guest holds. What a guest leaves as it is stays in its
-- file. `head`: what has left before.
local function feed_file(stream, file, head)
    local at, changed = 0, false
    local piece = file:read(PIECE)
    local outcome, err
    repeat
        local read = #(piece or "")
        local after = file:read(PIECE)
        outcome, err = stream:request_body(piece, not after)
        if not outcome or outcome.action == "reply" then
            return outcome, err
        end
        head = outcome.headers or head
        if not changed and outcome.body ~= (piece or "") then
            changed, err = rewrite_from(file, at)
            if not changed then
                return nil, err
            end
            file:seek("set", at + read + #(after or ""))
        end
        if changed and outcome.body ~= "" then
            ngx.req.append_body(outcome.body)
        end
        at = at + read
        piece = after
    until not after
    if changed then
        ngx.req.finish_body()
    end
    outcome.headers = head
    return outcome
end


-- The body of the request that nginx serves, as far as a guest looks at it.
local function feed_body(stream, head)
    if not stream:sees_request_body() then
        local outcome, err = stream:request_body(nil, true)
        if outcome then
            outcome.headers = outcome.headers or head
        end
        return outcome, err
    end
    ngx.req.read_body()
    local bytes = ngx.req.get_body_data()
    local path_of_file = not bytes and ngx.req.get_body_file()
    if path_of_file then
        local file, err = open(path_of_file, "rb")
        if not file then
            return nil, err
        end
        local outcome
        outcome, err = feed_file(stream, file, head)
        file:close()
        return outcome, err
    end
    local outcome, err = stream:request_body(bytes, true)
    if outcome and outcome.action ~= "reply" then
        outcome.headers = outcome.headers or head
        if outcome.body ~= (bytes or "") then
            ngx.req.set_body_data(outcome.body)
        end
    end
    return outcome, err
end


local function same(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then
        return a == b
    end
    if #a ~= #b then
        return false
    end
    for i = 1, #a do
        if a[i] ~= b[i] then
            return false
        end
    end
    return true
end


local function unescape(s)
    return (gsub(s, "%%(%x%x)", function(hex)
        return char(tonumber(hex, 16))
    end))
end


local function set_pseudo(view, headers, host_was)
    local path_now, method, host = headers[":path"], headers[":method"], headers[":authority"]
    -- What goes upstream is what the guests have seen (PXG-SEC-007): nginx would forward the client's spelling.
    if path_now ~= ngx.var.request_uri then
        local mark = find(path_now, "?", 1, true)
        ngx.req.set_uri_args(mark and sub(path_now, mark + 1) or "")
        ngx.req.set_uri(unescape(mark and sub(path_now, 1, mark - 1) or path_now))
    end
    if method ~= view[":method"] then
        local id = ngx["HTTP_" .. upper(method)]
        if not id then
            return nil, "the guest set the method " .. method .. ", which nginx's Lua module cannot set"
        end
        ngx.req.set_method(id)
    end
    if host ~= host_was then
        ngx.req.set_header("host", host)
    end
    return true
end


local function set_request(view, headers, host_was)
    for name in pairs(view) do
        if headers[name] == nil and sub(name, 1, 1) ~= ":" and not NGINX_OWNS[name] then
            ngx.req.clear_header(name)
        end
    end
    for name, value in pairs(headers) do
        if sub(name, 1, 1) ~= ":" and name ~= "content-length" and not NGINX_OWNS[name]
           and not same(value, view[name]) then
            ngx.req.set_header(name, value)
        end
    end
    return set_pseudo(view, headers, host_was)
end


local function fail(stream, err)
    stream:finish("error")
    if err == "reset" then
        return ngx.exit(444)
    end
    ngx.log(ngx.ERR, "proxy_golang: ", err)
    return ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
end


local function chain_of(names)
    if type(names) ~= "table" or names.number then
        names = { names }
    end
    local chain = {}
    for i = 1, #names do
        if type(names[i]) == "string" then
            local filter, err = filters.filter(names[i], { phases = true })
            if not filter then
                return nil, err
            end
            chain[i] = filter
        else
            chain[i] = names[i]
        end
    end
    return chain
end


-- For rewrite_by_lua* and access_by_lua*: asks the chain about the request, applies what it changed, ends the request
-- with its reply.
function _M.access(names)
    local chain, err = chain_of(names)
    if not chain then
        ngx.log(ngx.ERR, "proxy_golang: ", err)
        return ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
    end
    local stream = core.stream(chain, { trailers = false })
    local view, host = request_head()
    local body_follows = not core.request_ends()
    local outcome
    ngx.ctx[KEY] = { stream = stream }
    outcome, err = stream:request_headers(view, not body_follows)
    if outcome and outcome.action ~= "reply" and body_follows then
        outcome, err = feed_body(stream, outcome.headers)
    end
    if not outcome then
        return fail(stream, err)
    end
    if outcome.action == "reply" then
        ngx.ctx[KEY].done = true
        return _M.respond(outcome.reply)
    end
    local applied
    applied, err = set_request(view, outcome.headers, host)
    if not applied then
        return fail(stream, err)
    end
    return true
end


-- ---- Responses ------------------------------------------------------------------------------------------------------

local function response_head()
    local view = { [":status"] = ngx.status }
    for name, value in pairs(ngx.resp.get_headers(0)) do
        if not NGINX_OWNS[name] then
            view[name] = value == true and "" or value
        end
    end
    return view
end


-- For header_filter_by_lua*.
function _M.header_filter()
    local ctx = ngx.ctx[KEY]
    if not ctx or ctx.done then
        return
    end
    local view = response_head()
    -- nginx may rewrite the length behind this filter; a HEAD response keeps it.
    local outcome, err = ctx.stream:response_headers(view, ngx.req.get_method() == "HEAD")
    if not outcome then
        ctx.done, ctx.replacement = true, ""
        if err ~= "reset" then
            ngx.log(ngx.ERR, "proxy_golang: ", err)
        end
        set_response(ngx.HTTP_INTERNAL_SERVER_ERROR, { ["content-length"] = "0" })
        return
    end
    if outcome.action == "reply" then
        ctx.done, ctx.replacement = true, outcome.reply.body or ""
        set_response(outcome.reply.status, outcome.reply.headers)
        return
    end
    set_response(tonumber(outcome.headers[":status"]), outcome.headers)
    if ctx.stream:sees_response_body() then
        -- Ranges and lengths are of what the upstream sent.
        ngx.header["accept-ranges"] = nil
    end
end


-- For body_filter_by_lua*.
function _M.body_filter()
    local ctx = ngx.ctx[KEY]
    if not ctx then
        return
    end
    if ctx.replacement then
        ngx.arg[1] = ctx.replacement
        ngx.arg[2] = true
        ctx.replacement = nil
        ctx.replaced = true
        return
    end
    if ctx.replaced then
        ngx.arg[1] = nil
        return
    end
    if ctx.done then
        return
    end
    local bytes, last = ngx.arg[1], ngx.arg[2]
    local outcome, err = ctx.stream:response_body(bytes, last)
    if last then
        ctx.done = true
    end
    if not outcome or outcome.action == "reply" then
        ctx.done = true
        if err ~= "reset" then
            ngx.log(ngx.ERR, "proxy_golang: ", err or "a reply after the headers have left")
        end
        ngx.arg[1] = nil
        return ngx.ERROR
    end
    if outcome.body ~= bytes then
        ngx.arg[1] = outcome.body
    end
end


-- For log_by_lua*: the end of the stream, with its cause.
function _M.log()
    local ctx = ngx.ctx[KEY]
    if not ctx then
        return
    end
    ctx.stream:finish(ngx.status == 499 and "client_abort" or "complete")
end


return _M
