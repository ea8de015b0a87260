#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's ten minutes, and the page for operators: their configurations as they stand there, their guests, what they
say to expect.

    PXG_NGINX_MODULE=MODULE.so tests/readme.py [unittest arguments]      Environment: see harness.py.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import unittest

import harness
from harness import Client, folder, wait_for


class Readme(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(f"{harness.HERE}/../README.md") as f:
            cls.text = f.read()

    def conf(self, path):
        found = re.findall(r"```nginx\n(.*?)```", self.text, re.S)
        self.assertEqual(len(found), 1)
        # Ports of the page may be taken here; all else is as it stands there.
        text = found[0]
        for port, socket in (("127.0.0.1:8080", f"unix:{path}/n.sock"), ("http://127.0.0.1:9000/", f"http://unix:{path}/up.sock:/"),
                             ("http://127.0.0.1:9000", f"http://unix:{path}/up.sock"), ("allow 127.0.0.1", "allow unix:")):
            self.assertIn(port, text)
            text = text.replace(port, socket)
        with open(f"{path}/nginx.conf", "w") as f:
            f.write(text)

    def ask(self, path, uri):
        with Client(f"{path}/n.sock") as c:
            c.send(f"GET {uri} HTTP/1.1\r\nHost: e\r\nX-Trace-Id: forged\r\nConnection: close\r\n\r\n".encode())
            return c.answer()

    def expect(self, path, upstream):
        got = self.ask(path, "/")
        self.assertEqual((got.status, got.get("x-policy")), (200, ["on"]))
        trace = got.get("x-trace-id")
        self.assertEqual(len(trace), 1)
        self.assertNotIn("forged", trace[0])
        self.assertIn(trace[0], upstream[-1])
        self.assertNotIn("forged", upstream[-1])
        self.assertEqual(self.ask(path, "/secret").status, 404)
        self.assertEqual(len(upstream), 1)
        got = self.ask(path, "/plain/")
        self.assertEqual((got.status, got.get("x-policy"), got.get("x-trace-id")), (200, ["plain"], []))
        self.assertNotIn("forged", upstream[-1])
        status = self.ask(path, "/proxy_golang").body.decode()
        self.assertIn("policy: loaded", status)
        self.assertRegex(status, r"pxg_guest_calls_total\n(  .*\n)*?  2  guest=\S+ filter=header-policy config=policy "
                                 r"phase=request_headers")

    def test_ten_minutes(self):
        with folder() as path:
            shutil.copy(harness.build_c(f"{harness.ROOT}/guest-sdk/c/examples/header-policy.c"), f"{path}/header-policy.so")
            subprocess.run(["go", "build", "-buildmode=c-shared", "-o", f"{path}/examples.so", "./examples/bundle"],
                           cwd=f"{harness.ROOT}/guest-sdk/go", check=True)
            shutil.copy(harness.MODULE, f"{path}/ngx_http_proxy_golang_module.so")
            self.conf(path)
            command = [harness.NGINX, "-p", path, "-c", f"{path}/nginx.conf", "-e", f"{path}/error.log"]
            tested = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=harness.DEADLINE * 3)
            self.assertEqual(tested.returncode, 0, tested.stderr)
            seen = []

            def answer(request, connection):
                seen.append(repr(request.fields))
                connection.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n")
                return False
            with harness.Upstream(f"{path}/up.sock", answer):
                process = subprocess.Popen(command)
                try:
                    # Written once it listens: before, there may be a socket that refuses. The test left an empty one.
                    wait_for("nginx", lambda: os.path.getsize(f"{path}/nginx.pid"), harness.DEADLINE * 3)
                    self.expect(path, seen)
                finally:
                    # Again and again: one that comes while nginx starts is overlooked.
                    wait_for("its end", lambda: process.poll() is not None or process.send_signal(signal.SIGQUIT),
                             harness.DEADLINE * 3)
            with open(f"{path}/access.log") as f:
                lines = [" ".join(l.split()[1:-1]) for l in f]
            self.assertEqual(lines, ['/ HTTP/1.1 200 passed "-"',
                                     '/secret HTTP/1.1 404 replied "policy.header-policy: line 1"',
                                     '/plain/ HTTP/1.1 200 passed "-"', '/proxy_golang HTTP/1.1 200 - "-"'])

    def test_lines_of_the_tables(self):
        """Every directive, every line of a block and every variable of the source is in the page."""
        src = f"{harness.HERE}/../src"
        named = {}
        for name in sorted(os.listdir(src)):
            with open(f"{src}/{name}") as f:
                text = f.read()
            if name in ("ngx_http_pxg_directives.c", "ngx_http_pxg_filter.c", "ngx_http_pxg_variables.c",
                        "ngx_http_pxg_routing.c"):
                named[name] = re.findall(r'\{ngx_string\("(\w+)"\)', text)
        self.assertEqual([n for n, found in named.items() if not found], [])
        for name, found in named.items():
            for word in found:
                if name in ("ngx_http_pxg_variables.c", "ngx_http_pxg_routing.c"):
                    word = "$" + word
                self.assertIn(f"`{word}", self.text, name)


class Operate(unittest.TestCase):
    """docs/src/nginx-operate.md"""

    @classmethod
    def setUpClass(cls):
        with open(f"{harness.ROOT}/docs/src/nginx-operate.md") as f:
            cls.text = f.read()

    def blocks(self, path):
        blocks = re.findall(r"```nginx\n(.*?)```", self.text, re.S)
        self.assertEqual(len(blocks), 4)
        *http, override = blocks
        text = "".join(http)
        guest = harness.build_c(f"{harness.ROOT}/guest-sdk/c/examples/header-policy.c")
        for there, here in (("/usr/lib/proxy_golang/header-policy.so", guest), ("127.0.0.1:8080", f"unix:{path}/n.sock"),
                            ("127.0.0.1:9145", f"unix:{path}/metrics.sock"), ("http://127.0.0.1:9000", f"http://unix:{path}/up.sock"),
                            ("allow 127.0.0.1", "allow unix:"), (" canary.error.log", f" {path}/logs/canary.error.log"),
                            (" access.log", f" {path}/logs/access.log")):
            self.assertIn(there, text)
            text = text.replace(there, here)
        return text, override

    def test_page(self):
        def answer(request, connection):
            connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n")
        with folder() as path, harness.Upstream(f"{path}/up.sock", answer):
            http, override = self.blocks(path)
            with open(f"{path}/header-policy.conf", "w") as f:
                f.write("response set x-policy on")

            def conf(http):
                return (f"load_module {harness.MODULE};" + harness.head(path)
                        + f"events {{ }} http {{ {harness.temp_paths(path)} {http} }}")
            with harness.Nginx(path, conf(http), f"{path}/metrics.sock") as nginx:
                ask = lambda uri: harness.ask(f"{path}/n.sock", uri).get("x-policy")
                self.assertEqual((ask("/x"), ask("/canary/x")), ([], ["on"]))
                metrics = harness.ask(f"{path}/metrics.sock", "/metrics").body.decode()
                named = set(re.findall(r"\bpxg_\w+", self.text))
                self.assertGreater(len(named), 5)
                self.assertEqual([n for n in named if f"# TYPE {n} " not in metrics and f"\n{n}{{" not in metrics], [])
                nginx.write(conf(http.replace("proxy_golang policy;", "proxy_golang policy;" + override)))
                nginx.reload()
                wait_for("it is out of the way", lambda: ask("/canary/x") == [])
                said = harness.read(f"{path}/logs/access.log").splitlines()
                self.assertRegex(said[0], r'"GET /x HTTP/1.1" 200 0\.\d+ - "-" -$')
                self.assertRegex(said[1], r'"GET /canary/x HTTP/1.1" 200 0\.\d+ passed "-" 0\.\d+$')
                self.assertNotIn("[warn]", nginx.log())

    def test_names(self):
        """What the page names is in the README or the sources."""
        with open(f"{harness.HERE}/../README.md") as f:
            readme = f.read()
        for word in re.findall(r"`\$?(proxy_golang\w*|pend_\w+|max_\w+|failure_mode|hold_\w+)", self.text):
            self.assertIn(word, readme)
        for verdict in ("passed", "replied", "failed", "bypassed", "reset", "aborted"):
            self.assertIn(f"`{verdict}`", readme)
            self.assertIn(f"`{verdict}`", self.text)


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
