#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""resty.proxy_golang.ffi: the host in LuaJIT alone, in an nginx without the module, with guests in C, Go and Rust.

    tests/ffi.py [unittest arguments]      see hosts/nginx/tests/harness.py for the environment
"""

import json
import os
import subprocess
import tempfile
import unittest

import common
from common import harness

HELLO = "hello"


class Ffi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.build = None
        if not os.environ.get("PXG_TEST_BUILD"):
            cls.build = tempfile.TemporaryDirectory(prefix="pxg-guests-")
            os.environ["PXG_TEST_BUILD"] = cls.build.name
        cls.guest = common.build(f"{common.HERE}/guest.c", "lua-guest")
        cls.policy = common.build(f"{common.ROOT}/guest-sdk/c/examples/header-policy.c", "header-policy")
        cls.go = harness.build_go(f"{common.ROOT}/guest-sdk/go/examples/hello", f"{os.environ['PXG_TEST_BUILD']}/hello.so")
        cls.folder = harness.folder()
        cls.path = cls.folder.__enter__()
        conf = common.conf(cls.path, cls.guest)
        conf = "".join(line for line in conf.splitlines(True) if "proxy_golang" not in line or "lib/?.lua" in line)
        conf = conf.replace(f"load_module {harness.MODULE};\n", "")
        with open(f"{cls.path}/console.lua") as f:
            console = f.read()
        with open(f"{cls.path}/console.lua", "w") as f:
            f.write(console.replace('"resty.proxy_golang"', '"resty.proxy_golang.ffi"'))
        cls.nginx = harness.Nginx(cls.path, conf, f"{cls.path}/n.sock")
        try:
            cls.nginx.__enter__()
        except BaseException:
            cls.folder.__exit__(None, None, None)
            raise
        cls.lua = common.Console(cls.path)

    @classmethod
    def tearDownClass(cls):
        cls.nginx.__exit__()
        cls.folder.__exit__(None, None, None)
        if cls.build:
            cls.build.cleanup()
            del os.environ["PXG_TEST_BUILD"]

    def run_with(self, word, code, phase="content", guest=None, name="lua-test"):
        return self.lua.run(f"""
            local guest = assert(pxg.load("{guest or self.guest}"))
            local f = assert(guest:filter{{filter = "{name}", config = [==[{word}]==]}})
            local s = f:stream()
            {code}""", phase)

    def test_layout(self):
        """The structs are those of the specification."""
        with open(f"{common.ROOT}/spec/abi/v1.0.layout.json") as f:
            layout = json.load(f)
        checked = 0
        for struct in layout["structs"]:
            ours = struct["name"].replace("pxg_", "pxg_lua_", 1)
            got = self.lua.run(f'local ok, n = pcall(require("ffi").sizeof, "{ours}") return ok and tonumber(n) or "none"')
            if got == ["none"]:
                continue
            checked += 1
            members = ", ".join(f'"{m["name"]}"' for m in struct["members"])
            offsets = self.lua.run(f"""
                local ffi, t = require "ffi", {{{members}}}
                for i = 1, #t do t[i] = tostring(tonumber(ffi.offsetof("{ours}", t[i]))) end
                return table.concat(t, " ")""")
            self.assertEqual((got, offsets), ([str(struct["size"])], [" ".join(str(m["offset"]) for m in struct["members"])]),
                             ours)
        self.assertEqual(checked, 13)

    def test_headers(self):
        for phase in ("rewrite", "access", "content", "timer", "header", "body", "log", "set"):
            with self.subTest(phase=phase):
                got = self.run_with("headers", """
                    local a = assert(s:request_headers(head{["X-A"] = {"1", "2"}, ["x-b"] = ""}))
                    local b = assert(s:request_body("hello"))
                    local c = assert(s:response_headers{[":status"] = 200})
                    local d = assert(s:response_body("bye"))
                    return a.action, a.headers["x-guest"], a.headers["x-a"][2], a.headers["x-b"] == "", b.body,
                           c.headers["x-guest"], d.body, d.last, s:finish(), (select(2, s:finish()))""", phase)
                self.assertEqual(got, ["continue", "sync", "2", "true", "hello", "sync", "bye", "true", "true", "closed"])

    def test_whole_bodies(self):
        got = self.run_with("whole", r"""
            local a = s:request_headers(head{["content-length"] = 3})
            local b = s:request_body("a\0b")
            local c = s:response_headers({[":status"] = 200}, true)
            s:finish()
            return a.action, a.headers, b.action, b.body == "A\0B\n", b.headers["content-length"], c.action, c.last""")
        self.assertEqual(got, ["more", "nil", "continue", "true", "4", "continue", "true"])

    def test_request(self):
        got = self.run_with("path", """
            local a = s:request_headers(head{["x-drop"] = 1}, true)
            s:finish()
            return a.headers[":path"], a.headers[":method"], a.headers[":authority"], a.headers["x-drop"]""")
        self.assertEqual(got, ["/changed?q=1", "PUT", "guest.example"])

    def test_replies(self):
        got = self.run_with("deny", """
            local o = s:request_headers(head())
            local r = o.reply
            s:finish()
            return o.action, r.status, r.body, r.headers["x-reply"][2], r.headers["content-length"], r.details""")
        self.assertEqual(got, ["reply", "403", "denied", "", "twice", "7", "said so"])

    def test_failures(self):
        for word, mode, expected in (("error", "closed", ["reply", "500"]), ("error", "open", ["continue", "nil"])):
            got = self.lua.run(f"""
                local f = pxg.load("{self.guest}"):filter{{filter = "lua-test", config = "{word}", failure_mode = "{mode}"}}
                local s = f:stream()
                local o = s:request_headers(head(), true)
                s:finish()
                return o.action, o.reply and o.reply.status or "nil" """)
            self.assertEqual(got, expected)
        self.assertIn("told to fail", self.nginx.log())
        self.assertEqual(self.run_with("reset", "return s:request_headers(head())"), ["nil", "reset"])

    def test_refusals(self):
        text = f"{self.path}/text.so"
        with open(text, "w") as f:
            f.write("no library" * 100)
        for code, expected in (
            ('pxg.load("/none.so")', "No such file"),
            (f'pxg.load("{text}")', "no ELF file"),
            ('pxg.load("/bin/true")', "pxg_guest_init_v1"),
            (f'pxg.load("{self.guest}"):filter{{filter = "lua-test", config = "refuse"}}', "ARG: no word of this guest"),
            (f'pxg.load("{self.guest}"):filter{{filter = "lua-test", config = "must-pend"}}', "PEND_RESPONSE_HEADERS"),
            (f'pxg.load("{self.guest}"):filter{{filter = "lua-test", config = "never"}}', "cannot wait for a guest"),
            (f'pxg.load("{self.guest}"):filter{{filter = "lua-test", config = "stream"}}', "expected SKIP or WHOLE"),
        ):
            with self.subTest(code=code):
                o, err = self.lua.run("return " + code)
                self.assertEqual(o, "nil")
                self.assertIn(expected, err)
        self.assertIn("expected an absolute path", self.lua.run('pxg.load("x.so")')[0])

    def test_c_example(self):
        got = self.run_with("deny path-prefix /secret 404\nresponse set x-policy on", """
            local t = f:stream()
            local o = t:request_headers(head{[":path"] = "/secret/1"}, true)
            t:finish()
            s:request_headers(head(), true)
            local p = s:response_headers({[":status"] = 200}, true)
            s:finish()
            return o.action, o.reply.status, p.headers["x-policy"]""", guest=self.policy, name="header-policy")
        self.assertEqual(got, ["reply", "404", "on"])

    def test_go_example(self):
        got = self.run_with('{"name": "lua"}', """
            local n = 0
            for i = 1, 20000 do
                local t = f:stream()
                local o = t:request_headers(head{["x-i"] = i}, true)
                n = n + (o.headers["x-hello"] == "lua" and o.headers["x-i"] == tostring(i) and 1 or 0)
                t:finish()
            end
            s:finish()
            return n""", guest=self.go, name="hello")
        self.assertEqual(got, ["20000"])

    def test_rust_example(self):
        guest = common.rust_guest()
        if not guest:
            self.skipTest("no libbody_rewrite.so: cargo build -p body-rewrite")
        got = self.run_with('{"replace": [{"from": "cat", "to": "dog"}]}', """
            s:request_headers(head({["accept-encoding"] = "gzip"}), true)
            local a = s:response_headers({[":status"] = 200, ["content-type"] = "text/plain", ["content-length"] = 15})
            local o = s:response_body("a cat and a cat")
            s:finish()
            return a.action, o.body, o.headers["content-length"]""", guest=guest, name="body-rewrite")
        self.assertEqual(got, ["more", "a dog and a dog", "15"])

    def test_memory(self):
        code = """
            for i = 1, 20000 do
                local t = f:stream()
                t:request_headers(head{["x-i"] = i})
                t:request_body("hello")
                t:finish()
            end
            s:finish()
            f:close()
            collectgarbage()
            return "done" """
        rss = lambda: harness.status_of(self.nginx.workers()[0], "VmRSS")
        self.run_with("whole", code)
        before = rss()
        for _ in range(4):
            self.assertEqual(self.run_with("whole", code), ["done"])
        self.assertLess(rss() - before, 2500, "KiB over 80,000 streams")

    def test_outside_of_nginx(self):
        code = f"""
            package.path = "{common.HERE}/../lib/?.lua;" .. package.path
            local host = require "resty.proxy_golang.ffi"
            local f = assert(assert(host.load("{self.guest}")):filter{{filter = "lua-test", config = "headers"}})
            print(f:stream():request_headers({{[":method"] = "GET", [":path"] = "/"}}, true).headers["x-guest"])"""
        got = subprocess.run(["luajit", "-e", code], capture_output=True, text=True, timeout=harness.DEADLINE)
        self.assertEqual((got.stdout, got.stderr), ("sync\n", ""))


if __name__ == "__main__":
    unittest.main()
