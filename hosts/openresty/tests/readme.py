#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's examples, as they stand there, and the packages that it names.

    PXG_NGINX_MODULE=MODULE.so tests/readme.py [unittest arguments]   see hosts/nginx/tests/harness.py for the environment
"""

import os
import re
import shutil
import subprocess
import tempfile
import unittest

import common
from common import harness

HERE = common.HERE


class Readme(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(f"{HERE}/../README.md") as f:
            cls.text = f.read()
        with tempfile.TemporaryDirectory(prefix="pxg-guests-") as folder:
            os.environ.setdefault("PXG_TEST_BUILD", folder)
            cls.addClassCleanup(os.environ.pop, "PXG_TEST_BUILD") if os.environ["PXG_TEST_BUILD"] == folder else None
            cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="pxg-readme-"))
            cls.policy = shutil.copy(common.build(f"{common.ROOT}/guest-sdk/c/examples/header-policy.c", "header-policy"), cls.folder)

    def put(self, text, pairs):
        for was, now in pairs:
            self.assertIn(was, text)
            text = text.replace(was, now)
        return text

    def serve(self, path, more="", where=""):
        """The Synopsis, with files and ports of this machine."""
        found = re.findall(r"```nginx\n(.*?)```", self.text, re.S)
        self.assertEqual(len(found), 1)
        conf = self.put(found[0], (
            ("modules/ndk_http_module.so", f"{common.LUA_MODULES}/ndk_http_module.so"),
            ("modules/ngx_http_lua_module.so", f"{common.LUA_MODULES}/ngx_http_lua_module.so"),
            ("modules/ngx_http_proxy_golang_module.so", harness.MODULE),
            ("/usr/share/lua-resty-proxy-golang/lib/?.lua", f"{where or HERE + '/../lib'}/?.lua;{common.LUA_PATH}"),
            ("/usr/lib/proxy_golang/header-policy.so", self.policy),
            ("listen 8080", f"listen unix:{path}/n.sock"),
            ("http://127.0.0.1:9000", f"http://unix:{path}/up.sock"),
            ("http {\n", harness.head(path, "user root;") + "events {}\nhttp {\n"),
            ("    server {\n", "    access_log off;\n" + harness.temp_paths(path) + "    server {\n" + more),
        ))
        return harness.Nginx(path, conf, f"{path}/n.sock")

    @staticmethod
    def answer(request, connection):
        connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup")
        return True

    def test_synopsis(self):
        with harness.folder() as path, harness.Upstream(f"{path}/up.sock", self.answer), self.serve(path):
            ask = lambda url, **more: harness.ask(f"{path}/n.sock", url, **more)
            self.assertEqual(ask("/").status, 401)
            self.assertEqual(ask("/", fields=("Authorization: x",)).body, b"up")
            self.assertEqual(ask("/may").body, b"401\n")
            self.assertEqual(ask("/may?token=x").body, b"yes\n")

    def test_each_example(self):
        """Each runs by itself, with `pxg` and a `filter`, and leaves no stream."""
        found = re.findall(r"```lua\n(.*?)```", self.text, re.S)
        self.assertEqual(len(found), 6)
        more = ""
        for i, code in enumerate(found):
            code = code.replace("/usr/lib/proxy_golang/header-policy.so", self.policy)
            with open(f"{self.folder}/example-{i}.lua", "w") as f:
                f.write("local pxg, filter = ...\n" + code + "\nreturn outcome, err, filter, pxg")
            more += f"""location /example/{i} {{ content_by_lua_block {{
                local pxg = require "resty.proxy_golang"
                -- The synopsis' guest asks for a field that most examples do not have.
                local open = assert(pxg.load{{guest = "{self.policy}", filter = "header-policy", name = "open",
                                              config = "response set x-policy on"}})
                local outcome, err, filter = assert(loadfile("{self.folder}/example-{i}.lua"))(pxg, open)
                ngx.say("|", outcome and outcome.action, " ", err, " ", filter ~= nil, " ", pxg.streams())
            }} }}\n"""
        with harness.folder() as path, harness.Upstream(f"{path}/up.sock", self.answer), self.serve(path, more) as nginx:
            for i, code in enumerate(found):
                with self.subTest(i):
                    reads = "read_request_body" in code
                    body = b"12345" * 20000 if reads else None
                    with harness.Client(f"{path}/n.sock") as c:
                        c.send_aside(harness.request("POST" if reads else "GET", f"/example/{i}", body=body))
                        got = c.answer().body.decode()
                    echoed, _, said = got.rpartition("|")
                    # Some have no outcome: they load, or count.
                    self.assertRegex(said, r"^(continue|nil) nil true 0\n$", "\n".join(nginx.log().splitlines()[-5:]))
                    self.assertEqual("outcome" in code, said.startswith("continue"))
                    self.assertTrue(echoed.encode() == (body or b""))

    def test_methods_are_those_of_the_library(self):
        """Each that is documented is there, and the other way round."""
        documented = set(re.findall(r"(?:pxg|stream|filter)[.:](\w+)\(", "\n".join(re.findall(r"`syntax: (.*)`", self.text))))
        documented |= {m for line in re.findall(r"^([\w, :]+)\n-+$", self.text, re.M) for m in re.split(r"[,:] *", line)}
        with open(f"{HERE}/../lib/resty/proxy_golang.lua") as f:
            there = set(re.findall(r"^_M\.(\w+) =", f.read(), re.M))
        with open(f"{HERE}/../lib/resty/proxy_golang/stream.lua") as f:
            there |= set(re.findall(r"^function (?:Stream|filter\.methods):(\w+)", f.read(), re.M))
        self.assertEqual(there - documented, set())
        self.assertEqual(documented - there - {"filter"}, set())

    def test_luarocks(self):
        """What luarocks installs is what serves."""
        if not shutil.which("luarocks"):
            self.skipTest("no luarocks: apt-get install --no-install-recommends luarocks")
        rockspec = "lua-resty-proxy-golang-1.0.0-1.rockspec"
        subprocess.run(["luarocks", "lint", rockspec], cwd=f"{HERE}/..", check=True)
        with harness.folder() as path, harness.Upstream(f"{path}/up.sock", self.answer):
            # A copy: builds leave files where they run.
            shutil.copytree(f"{HERE}/..", f"{path}/source", ignore=shutil.ignore_patterns("tests"))
            subprocess.run(["luarocks", "--lua-version", "5.1", "--tree", f"{path}/rock", "make", "--deps-mode", "none", rockspec],
                           cwd=f"{path}/source", check=True, capture_output=True)
            with self.serve(path, where=f"{path}/rock/share/lua/5.1"):
                self.assertEqual(harness.ask(f"{path}/n.sock", "/may?token=x").body, b"yes\n")


if __name__ == "__main__":
    unittest.main()
