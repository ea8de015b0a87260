#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an operator configures, and what becomes of requests: overrides, error pages, fields that are stripped, the access
log, the error log.

    PXG_NGINX_MODULE=MODULE.so tests/operation.py [unittest arguments]      Environment: see harness.py.
"""

import os
import re
import signal
import sys
import unittest

import harness
from harness import Client, folder, wait_for
from served import Served, Test, filter_of


class Configuration(Test):
    def test_overrides(self):
        http = filter_of("a", "header http") + filter_of("b", "header b")
        http += 'proxy_golang a b;\nproxy_golang_override b { config "header wide"; }\n'
        server = """
    location /server/ { alias HTML/; }
    location /own/ { proxy_golang_override a { config "header own"; } alias HTML/;
      location /own/inner/ { proxy_golang_override b { config "header inner"; } alias HTML/; }
      location /own/back/ { proxy_golang_override a { disabled off; } alias HTML/; } }
    location /gone/ { proxy_golang_override a { disabled on; } alias HTML/; }
    location /none/ { proxy_golang_override a { disabled on; } proxy_golang_override b { disabled on; } alias HTML/; }
    location /file/ { proxy_golang_override a { config_file a.conf; } alias HTML/; }
    location /mode/ { proxy_golang_override a { failure_mode open; } alias HTML/; }
    location /off/ { proxy_golang off; alias HTML/; }
    location /one/ { proxy_golang b; alias HTML/; }
"""
        with folder() as path:
            with open(f"{path}/html/x", "w") as f:
                f.write("text\n")
            with open(f"{path}/a.conf", "w") as f:
                f.write("header file")
            s = Served(path, http, server.replace("HTML", f"{path}/html"))
            with s.nginx:
                for where, guests, parents in (
                    ("server", ["http", "wide"], ["b"]), ("own", ["own", "wide"], ["a", "b"]),
                    ("own/inner", ["own", "inner"], ["a", "b"]), ("own/back", ["http", "wide"], ["b"]),
                    ("gone", ["wide"], ["b"]), ("none", [], []), ("file", ["file", "wide"], ["a", "b"]),
                    ("mode", ["http", "wide"], ["a", "b"]), ("off", [], []), ("one", ["wide"], ["b"]),
                ):
                    with self.subTest(where=where):
                        got = s.ask(f"/{where}/x")
                        # The response passes the chain from its end.
                        self.assertEqual((got.status, got.get("x-guest")[::-1], got.get("x-parent")[::-1]),
                                         (200, guests, parents))

    def test_error_pages(self):
        """What nginx makes itself is seen by guests that ask for it; an error page of an upstream by all."""
        http = filter_of("a", "header x") + filter_of("all", "header all", "reply_refilter on;")
        http += "proxy_cache_path PATH/cache keys_zone=c:1m;"
        server = """
    proxy_golang a all;
    location /builtin { return 404; }
    location /gone/ { proxy_pass http://unix:PATH/none; }
    location /static/ { error_page 502 /page; proxy_pass http://unix:PATH/none; }
    location = /page { }
    location /remote/ { error_page 502 /up; proxy_pass http://unix:PATH/none; }
    location = /up { proxy_pass http://unix:PATH/up; }
    location /cached/ { error_page 502 /kept; proxy_pass http://unix:PATH/none; }
    location = /kept { proxy_cache c; proxy_cache_valid 1h; proxy_pass http://unix:PATH/up; }
    location /intercepted { error_page 503 /page; proxy_intercept_errors on; proxy_pass http://unix:PATH/up; }
"""

        def answer(request, connection):
            status = b"503 Busy" if request.path == "/intercepted" else b"200 OK"
            connection.say(b"HTTP/1.1 %s\r\nContent-Length: 5\r\n\r\npage\n" % status)
        with folder() as path, harness.Upstream(f"{path}/up", answer) as up:
            with open(f"{path}/html/page", "w") as f:
                f.write("page\n")
            s = Served(path, http.replace("PATH", path), server.replace("PATH", path))
            with s.nginx:
                # `return` answers before the phase in which a chain starts.
                for uri, status, guests in (("/builtin", 404, []), ("/gone/", 502, ["all"]), ("/static/", 502, ["all"]),
                                            ("/remote/", 502, ["all", "x"]), ("/cached/", 502, ["all", "x"]),
                                            ("/cached/", 502, ["all", "x"]), ("/intercepted", 503, ["all"])):
                    with self.subTest(uri=uri):
                        got = s.ask(uri)
                        self.assertEqual((got.status, got.get("x-guest")), (status, guests))
                self.assertEqual(up.seen, 3)

    def test_stripped_fields(self):
        http = filter_of("a", "user")
        server = f"""
    proxy_golang_strip_request_fields X-User x-other;
    location /guest/ {{ proxy_golang a; alias HTML/; }}
    location /plain/ {{ add_header x-user "<$http_x_user>"; add_header x-kept "<$http_x_kept>"; alias HTML/; }}
    location /off/ {{ proxy_golang a; proxy_golang_strip_request_fields off; alias HTML/; }}
"""
        fields = ["x-user: a", "X-USER: b", "x_user: c", "X-Kept: yes"]
        with self.served(http, "underscores_in_headers on;" + server) as s:
            self.assertEqual(s.ask("/guest/x", fields).get("x-seen"), ["none"])
            got = s.ask("/plain/x", fields)
            self.assertEqual((got.get("x-user"), got.get("x-kept")), (["<>"], ["<yes>"]))
            self.assertEqual(s.ask("/off/x", fields).get("x-seen"), ["user"])


class Verdicts(Test):
    maxDiff = None

    def test_failures(self):
        http = (filter_of("closed", "error no luck") + filter_of("panic", "error panic: at the disco")
                + filter_of("open", "error no luck", "failure_mode open;") + filter_of("reply", "reply")
                + filter_of("late", "never", "pend_limit 20ms;") + filter_of("a-b", "header x"))
        names = ("closed", "panic", "open", "reply", "late", "a-b")
        server = "".join(f"location /{n}/ {{ proxy_golang {n}; alias HTML/; }}\n" for n in names)
        server += "location /plain/ { alias HTML/; }\n"
        with self.served(http, server) as s:
            got = {n: s.ask(f"/{n}/x").status for n in (*names, "plain")}
            self.assertEqual(got, {"closed": 500, "panic": 500, "open": 200, "reply": 403, "late": 500, "a-b": 200,
                                   "plain": 200})
            for name, reason in (("closed", "error"), ("panic", "panic"), ("open", "error"), ("late", "deadline")):
                self.assertEqual(s.number("pxg_guest_failures_total", config=name, reason=reason), 1, name)
            self.assertEqual(s.number("pxg_guest_bypassed_total", config="open"), 1)
            self.assertEqual(s.number("pxg_guest_panics_total", config="panic", phase="request_headers"), 1)
            s.nginx.quit()
            with open(f"{s.path}/logs/access.log") as f:
                lines = dict(l.split(" ", 1) for l in f.read().splitlines() if "/status" not in l)
            seconds = r"\d+\.\d{6}"
            for name, said in (
                ("closed", rf"500 failed \[closed\.error\] {seconds} -"),
                ("panic", rf"500 failed \[panic\.panic\] {seconds} -"),
                ("open", rf"200 bypassed \[-\] {seconds} -"),
                ("reply", rf"403 replied \[reply\.not_today\] {seconds} -"),
                ("late", rf"500 failed \[late\.deadline\] {seconds} -"),
                ("a-b", rf"200 passed \[-\] {seconds} {seconds}"),
                ("plain", r"200 - \[-\] - -"),
            ):
                self.assertRegex(lines[f"/{name}/x"], f"^{said}$", name)
            log = s.nginx.log()
            for name, reason, text in (("closed", "error", "no luck"), ("panic", "panic", "panic: at the disco"),
                                       ("late", "deadline", "the deadline of a PENDING")):
                self.assertRegex(log, rf"\[error\] \d+#\d+: \*(\d+) proxy_golang: guest=operator-test filter=operator "
                                      rf"config={name} phase=request_headers stream=\1 reason={reason}: {text}, "
                                      rf'client: unix:, server: , request: "GET /{name}/x HTTP/1.1", host: "e"\n')


    def test_verdicts(self):
        """In the access log, whatever becomes of a request."""
        words = {"ok": "header x", "reply": "reply", "late": "late", "error": "error x", "reset": "reset", "never": "never",
                 "open": "error x"}
        http = "".join(filter_of(n, w, "failure_mode open;" if n == "open" else "") for n, w in words.items())
        server = "log_subrequest on;" + "".join(f"location /{n} {{ proxy_golang ok {n}; alias HTML/x; }}\n" for n in words)
        server += """
    location /redirect { proxy_golang ok; try_files /none /inner; }
    location /inner { proxy_golang reply; alias HTML/x; }
    location /page { proxy_golang ok; error_page 404 /ok; }
    location /sub { proxy_golang ok; auth_request /auth; alias HTML/x; }
    location /auth { proxy_golang reply; return 204; }
    location /denied { proxy_golang ok; auth_request /no; alias HTML/x; }
    location /no { return 403; }
    location /return { proxy_golang reply; return 204; }
    location /plain { alias HTML/x; }
"""
        with self.served(http, server) as s:
            for n in words:
                if n == "never":
                    with Client(f"{s.path}/n.sock") as c:
                        c.send(b"GET /never HTTP/1.1\r\nHost: e\r\n\r\n")
                        wait_for("it pends", lambda: s.number("pxg_guest_pending") == 1)
                else:
                    s.ask(f"/{n}")
            for uri in ("/redirect", "/page", "/sub", "/denied", "/return", "/plain"):
                s.ask(uri)
            s.nginx.quit()
            said = [l.rsplit(" ", 2)[0] for l in harness.read(f"{s.path}/logs/access.log").splitlines() if "/status" not in l]
        self.assertEqual(sorted(said), sorted([
            "/ok 200 passed [-]", "/reply 403 replied [reply.not_today]", "/late 403 replied [late.not_today]",
            "/error 500 failed [error.error]", "/reset 444 reset [-]", "/open 200 bypassed [-]", "/never 499 aborted [-]",
            "/inner 200 passed [-]", "/ok 404 passed [-]", "/sub 200 passed [-]", "/auth 204 passed [-]",
            "/denied 403 passed [-]", "/no 403 passed [-]", "/return 204 - [-]", "/plain 200 - [-]"]))


class Log(Test):
    def test_long_records_of_other_threads(self):
        http = filter_of("a", "long 5000")
        with self.served(http, "location /x { proxy_golang a; }") as s:
            s.ask("/x")
            line = wait_for("the record", lambda: re.search(r".*beginx.*\n", s.nginx.log()))[0]
            self.assertRegex(line, r"^\d{4}/\d\d/\d\d [\d:]{8} \[warn\] (\d+)#\1: proxy_golang: guest=operator-test: begin")
            self.assertTrue(line.endswith("xend\n"), line[-20:])
            self.assertEqual(line.count("xx") * 2, 5000 - len("begin") - len("end"))
            # Rotation: the new file gets what comes.
            os.rename(s.nginx.error_log, s.nginx.error_log + ".1")
            s.nginx.signal(signal.SIGUSR1)
            wait_for("a new file", lambda: os.path.exists(s.nginx.error_log))

            def asked():
                s.ask("/x")
                return "beginx" in s.nginx.log()
            wait_for("a record in it", asked)

    def test_of_a_location(self):
        """What a guest says within an event goes where its location logs, at that log's level."""
        http = filter_of("a", "say it") + filter_of("t", "long 1000") + filter_of("e", "error it")
        server = "".join(f"location /{w} {{ proxy_golang a; error_log PATH/logs/{w} {w}; }}\n" for w in ("debug", "error"))
        server += ("location /main { proxy_golang a; } location /thread { proxy_golang t; error_log PATH/logs/thread; }"
                   "location /failure { proxy_golang e; error_log PATH/logs/failure; }")
        with folder() as path:
            s = Served(path, http, server.replace("PATH", path), level="warn")
            with s.nginx:
                for where in ("debug", "error", "main", "thread", "failure"):
                    s.ask(f"/{where}")
                wait_for("the record of a thread", lambda: "xend" in s.nginx.log())
                for where, log, levels in (("debug", "debug", "01234" if "debug" in harness.configured() else "1234"),
                                           ("error", "error", "4"), ("main", "error.log", "34")):
                    said = re.findall(rf"(\[\w+\]) \d+#\d+: \*(\d+) proxy_golang: guest=operator-test filter=operator config=a "
                                      rf'phase=request_headers stream=\2: it at (\d)(?:, client: unix:, server: , request: '
                                      rf'"GET /{where} HTTP/1.1", host: "e")?\n', harness.read(f"{path}/logs/{log}"))
                    self.assertEqual("".join(level for _, _, level in said), levels, where)
                self.assertNotIn("config=e phase", s.nginx.log())
                self.assertIn("reason=error: it, client", harness.read(f"{path}/logs/failure"))
                self.assertNotIn("xend", harness.read(f"{path}/logs/thread"))

    def test_level(self):
        http = filter_of("a", "header x")
        with self.served(http, "", level="warn") as s:
            self.assertEqual(s.life(), [])
            s.set(http, "", level="notice")
            s.nginx.reload()
            wait_for("what the guest says", lambda: [what for _, what in s.life() if what.startswith("new a")])

    def test_children_of_guests(self):
        with self.served(filter_of("a", "child"), "location /x { proxy_golang a; }") as s:
            s.ask("/x")
            wait_for("its status", lambda: "child: its status" in s.nginx.log())


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
