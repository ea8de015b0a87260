# SPDX-License-Identifier: Apache-2.0
"""An nginx with the Lua module and the library, whose phases run what a test sends them."""

import base64
import glob
import os
import subprocess
import sys
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(f"{HERE}/../../..")
sys.path.insert(0, f"{ROOT}/hosts/nginx/tests")

import harness  # noqa: E402

# Where lua-resty-core is, if nginx's Lua module does not find it by itself.
LUA_PATH = os.environ.get("PXG_LUA_PATH", "")
LUA_MODULES = os.environ.get("PXG_NGINX_MODULES", "/usr/lib/nginx/modules")

HEAD = '{[":method"]="GET", [":path"]="/", [":scheme"]="http", [":authority"]="e"}'

# What each phase of /console runs, from the argument c; its answers are lines.
CONSOLE = r"""
local pxg = require "resty.proxy_golang"
local console = {}
function console.head(more)
    local t = {[":method"] = "GET", [":path"] = "/", [":scheme"] = "http", [":authority"] = "e"}
    for k, v in pairs(more or {}) do t[k] = v end
    return t
end
function console.call(code)
    local f, err = loadstring("local pxg, head, kept = ...\n" .. ngx.decode_base64(ngx.unescape_uri(code)))
    if not f then return "LUA " .. err end
    local got = {pcall(f, pxg, console.head, console)}
    local lines = {}
    for i = 2, table.maxn(got) do
        lines[#lines + 1] = tostring(got[i])
    end
    return (got[1] and "" or "ERROR ") .. table.concat(lines, "\n")
end
return console
"""


def build(source, name, out=None):
    """A C guest, built anew if the source is newer."""
    folder = out or os.environ["PXG_TEST_BUILD"]
    os.makedirs(folder, exist_ok=True)
    to = f"{folder}/{name}.so"
    if not os.path.exists(to) or os.path.getmtime(to) < os.path.getmtime(source):
        subprocess.run(["cc", "-O1", "-g", "-shared", "-fPIC", f"-I{ROOT}/include", f"-I{ROOT}/guest-sdk/c/include",
                        source, "-o", f"{to}.{os.getpid()}", "-lpthread"], check=True)
        os.rename(f"{to}.{os.getpid()}", to)
    return to


def go_bundle():
    folder = os.environ["PXG_TEST_BUILD"]
    os.makedirs(folder, exist_ok=True)
    return harness.build_go(f"{ROOT}/guest-sdk/go/examples/bundle", f"{folder}/bundle.so")


def rust_guest():
    """libbody_rewrite.so as cargo left it, or null."""
    targets = [os.environ.get("CARGO_TARGET_DIR", ""), f"{ROOT}/target"]
    found = [f for t in targets if t for f in glob.glob(f"{t}/*/libbody_rewrite.so")]
    return os.environ.get("PXG_RUST_GUEST") or (max(found, key=os.path.getmtime) if found else None)


def conf(path, guest, more="", locations="", init="", workers=1, connections=4096):
    with open(f"{path}/console.lua", "w") as f:
        f.write(CONSOLE)
    words = ("headers", "pend", "must-pend", "never", "hang", "whole", "stream", "trailers", "deny", "late", "error",
             "reset", "path", "counts", "attrs", "must-attr")
    filters = "".join(f"proxy_golang_filter {w} {{ guest {guest}; filter lua-test; config {w}; "
                      f"pend_limit {'300ms' if w == 'never' else '20s'}; max_pending 20000; }}\n" for w in words)
    call = 'require("console").call(ngx.var.arg_c)'
    # "main" is for directives outside of http.
    return harness.head(path, f"""
load_module {LUA_MODULES}/ndk_http_module.so;
load_module {LUA_MODULES}/ngx_http_lua_module.so;
load_module {harness.MODULE};
user root; worker_processes {workers};
""") + f"""
events {{ worker_connections {connections}; }}
http {{
  {harness.temp_paths(path)}
  access_log off;
  lua_package_path "{path}/?.lua;{HERE}/../lib/?.lua;{HERE}/../examples/?.lua;{LUA_PATH};;";
  lua_max_running_timers 2000; lua_max_pending_timers 2000;
  lua_check_client_abort on;
  lua_shared_dict said 1m;
  {filters}
  {more}
  init_worker_by_lua_block {{
    require "resty.proxy_golang"
    {init}
  }}
  server {{
    listen unix:{path}/n.sock backlog=4096;
    listen unix:{path}/h2.sock http2;
    server_name e;
    keepalive_requests 1000000;
    location /rewrite {{ rewrite_by_lua_block {{ ngx.say({call}) ngx.exit(200) }} }}
    location /access {{ access_by_lua_block {{ ngx.say({call}) ngx.exit(200) }} }}
    location /content {{ content_by_lua_block {{ ngx.say({call}) }} }}
    location /timer {{ content_by_lua_block {{
      local c, done = ngx.var.arg_c, require("ngx.semaphore").new()
      local said
      ngx.timer.at(0, function() said = require("console").call(c) done:post() end)
      done:wait(20)
      ngx.say(said)
    }} }}
    location /header {{ return 200 "x"; header_filter_by_lua_block {{
      ngx.header["x-said"] = ngx.encode_base64({call}, true) }} }}
    location /body {{ return 200 "x"; header_filter_by_lua_block {{ ngx.header.content_length = nil }}
      body_filter_by_lua_block {{ if ngx.arg[2] then ngx.arg[1] = {call} end }} }}
    location /log {{ return 200 "x"; log_by_lua_block {{ ngx.shared.said:set("log", {call}) }} }}
    location /set {{ set_by_lua_block $said {{ return {call} }} return 200 $said; }}
    {locations}
  }}
}}
"""


class Console:
    """Runs Lua in an nginx's phases. `head()` makes a request's fields, `kept` is a table of the worker."""

    def __init__(self, path):
        self.socket = f"{path}/n.sock"

    def ask(self, path, **more):
        return harness.ask(self.socket, path, **more)

    def url(self, phase, code):
        return f"/{phase}?c=" + urllib.parse.quote(base64.b64encode(code.encode()).decode())

    def run(self, code, phase="content"):
        """What `code` returned, each value a string."""
        got = self.ask(self.url(phase, code))
        if phase == "header":
            text = base64.b64decode(got.get("x-said")[0] + "===").decode()
        elif phase == "log":
            said = []

            def logged():
                said[:] = self.run('local v = ngx.shared.said:get("log") ngx.shared.said:delete("log") return v')
                return said != ["nil"]

            harness.wait_for("the log phase has run", logged)
            return said
        else:
            text = got.body.decode()
        return text.rstrip("\n").split("\n")
