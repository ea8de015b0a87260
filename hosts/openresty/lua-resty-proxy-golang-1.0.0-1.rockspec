package = "lua-resty-proxy-golang"
version = "1.0.0-1"
source = {
    url = "git+https://github.com/proxy-golang/proxy_golang.git",
    tag = "v1.0.0",
    dir = "proxy_golang/hosts/openresty",
}
description = {
    summary = "Call proxy_golang guests (Go, Rust, C) from Lua",
    detailed = "Guests in native libraries are called from any Lua phase of nginx, and suspend the Lua thread without polling.",
    homepage = "https://github.com/proxy-golang/proxy_golang",
    license = "Apache-2.0",
}
dependencies = { "lua >= 5.1, < 5.2" }
build = {
    type = "builtin",
    modules = {
        ["resty.proxy_golang"] = "lib/resty/proxy_golang.lua",
        ["resty.proxy_golang.abi"] = "lib/resty/proxy_golang/abi.lua",
        ["resty.proxy_golang.features"] = "lib/resty/proxy_golang/features.lua",
        ["resty.proxy_golang.ffi"] = "lib/resty/proxy_golang/ffi.lua",
        ["resty.proxy_golang.ffi_guest"] = "lib/resty/proxy_golang/ffi_guest.lua",
        ["resty.proxy_golang.ffi_result"] = "lib/resty/proxy_golang/ffi_result.lua",
        ["resty.proxy_golang.fields"] = "lib/resty/proxy_golang/fields.lua",
        ["resty.proxy_golang.filter"] = "lib/resty/proxy_golang/filter.lua",
        ["resty.proxy_golang.module"] = "lib/resty/proxy_golang/module.lua",
        ["resty.proxy_golang.phases"] = "lib/resty/proxy_golang/phases.lua",
        ["resty.proxy_golang.stream"] = "lib/resty/proxy_golang/stream.lua",
    },
}
