-- SPDX-License-Identifier: Apache-2.0

local core = require "resty.proxy_golang.stream"
local filter = require "resty.proxy_golang.filter"
local phases = require "resty.proxy_golang.phases"

local _M = { _VERSION = "1.0.0" }

_M.load = filter.load
_M.filter = filter.filter
_M.stream = core.stream
_M.streams = core.streams

_M.respond = phases.respond
_M.path = phases.path
_M.authority = phases.authority
_M.request_ends = core.request_ends
_M.access = phases.access
_M.header_filter = phases.header_filter
_M.body_filter = phases.body_filter
_M.log = phases.log

return _M
