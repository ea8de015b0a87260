#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an operator configures and sees: overrides, fields that are stripped, counters over workers and reloads, the
status location, variables, the error log, and how processes begin and end.

    PXG_NGINX_MODULE=MODULE.so tests/operation.py [unittest arguments]      Environment: see harness.py.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import harness
from harness import Client, Nginx, children, folder, wait_for

GUEST = ""


def setUpModule():
    global GUEST
    GUEST = harness.build_c("operator.c")


def filter_of(name, config, inside=""):
    return f'proxy_golang_filter {name} {{ guest {GUEST}; filter operator; config "{config}"; {inside} }}\n'


LIMITS = "pend_default {0}ms; pend_limit {0}ms; hold_limit 90s;"  # For what nobody ends but the host.
FORMAT = "$uri $status $proxy_golang_verdict [$proxy_golang_details] $proxy_golang_time $proxy_golang_time_a_b"


class Served:
    """An nginx with one server, and what it is asked."""

    def __init__(self, path, http, server, main="", workers=1, level="notice", module=None):
        self.path, self.module = path, module or harness.MODULE
        self.nginx = Nginx(path, "", listens=f"{path}/n.sock")
        self.set(http, server, main, workers, level)

    def set(self, http, server, main="", workers=1, level="notice", encoding=None):
        path = self.path
        daemon = "" if "daemon" in main else "daemon off; "
        self.nginx.write(f"""load_module {self.module};
{daemon}pid {path}/nginx.pid; error_log {path}/logs/error.log {level}; worker_processes {workers};
{main}
events {{ worker_connections 64; }}
http {{
  {harness.temp_paths(path)}
  log_format pxg "{FORMAT}";
  access_log {path}/logs/access.log pxg;
{http}
  server {{
    listen unix:{path}/n.sock;
    root {path}/html;
{server}
    location /status {{ proxy_golang off; proxy_golang_status; }}
  }}
}}
""", encoding)

    def ask(self, uri, fields=()):
        with Client(f"{self.path}/n.sock") as c:
            lines = [f"GET {uri} HTTP/1.1", "Host: e", "Connection: close", *fields]
            c.send("\r\n".join(lines).encode() + b"\r\n\r\n")
            return c.answer()

    def numbers(self):
        """What Prometheus reads, by name and labels."""
        text = self.ask("/status?format=prometheus").body.decode()
        found = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
        return found

    def number(self, name, **labels):
        """The sum of all series of a name that have the labels."""
        want = [f'{k}="{v}"' for k, v in labels.items()]
        return sum(v for k, v in self.numbers().items()
                   if k.partition("{")[0] == name and all(w in k for w in want))

    def life(self):
        return re.findall(r"(\d+)#\d+: proxy_golang: .*life: (.*)", self.nginx.log())


class Test(unittest.TestCase):
    @contextlib.contextmanager
    def served(self, http, server, **more):
        with folder() as path:
            with open(f"{path}/html/x", "w") as f:
                f.write("text\n")
            s = Served(path, http, server.replace("HTML", f"{path}/html"), **more)
            with s.nginx:
                yield s
                bad = [l for l in s.nginx.log().splitlines() if "[alert]" in l or "exited on signal" in l]
                self.assertEqual(bad, [])


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


class Counting(Test):
    maxDiff = None

    def test_workers_add_up_and_a_reload_keeps_it(self):
        http = filter_of("a", "count")
        server = "proxy_golang a;"
        with self.served(http, server, workers=2) as s:
            for _ in range(20):
                s.ask("/x")
            self.assertEqual(s.number("pxg_guest_calls_total", config="a", phase="request_headers"), 20)
            self.assertEqual(s.number("pxg_user_operator_test_seen", kind="all"), 20)
            wait_for("both workers", lambda: s.number("pxg_worker_starts_total") == 2)
            s.nginx.reload()
            wait_for("old workers are gone", lambda: len(children(s.nginx.process.pid)) == 2)
            self.assertEqual(s.number("pxg_guest_calls_total", config="a", phase="request_headers"), 20)
            for _ in range(5):
                s.ask("/x")
            self.assertEqual(s.number("pxg_guest_calls_total", config="a", phase="request_headers"), 25)
            self.assertEqual(s.number("pxg_user_operator_test_seen"), 25)
            self.assertEqual(s.number("pxg_guest_call_seconds_count", config="a"), 50)
            # Another size is another memory.
            s.set("proxy_golang_metrics_zone 256k;\n" + http, server, workers=2)
            s.nginx.reload()
            self.assertEqual(s.number("pxg_guest_calls_total"), 0)

    def test_a_killed_worker_leaves_no_pending(self):
        http = filter_of("a", "never", "pend_limit 60s;")
        with self.served(http, "location /x { proxy_golang a; }") as s:
            with Client(f"{s.path}/n.sock") as c:
                c.send(b"GET /x HTTP/1.1\r\nHost: e\r\n\r\n")
                wait_for("it pends", lambda: s.number("pxg_guest_pending") == 1)
                old = s.nginx.workers()
                os.kill(old[0], signal.SIGKILL)
                wait_for("a new worker", lambda: s.nginx.workers() not in ([], old))
                self.assertEqual(s.number("pxg_guest_pending"), 0)
                self.assertEqual(c.rest(), b"")
            log = [l for l in s.nginx.log().splitlines() if "exited on signal 9" in l]
            self.assertEqual(len(log), 1)
            # The killing is the test's own.
            with open(s.nginx.error_log, "w"):
                pass

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


class Status(Test):
    def test_formats(self):
        http = filter_of("a", "header x") + filter_of("b", "reply", "batch_end off; all_cpus off; failure_mode open;")
        server = """
    location /x { proxy_golang a; }
    location /text { proxy_golang_status text; }
    location /json { proxy_golang_status json; }
    location /prometheus { proxy_golang_status prometheus; }
"""
        with self.served(http, server) as s:
            s.ask("/x")
            for uri, fields, kind in (
                ("/status", (), "text/plain; charset=utf-8"), ("/text", (), "text/plain; charset=utf-8"),
                ("/status", ["Accept: text/html,*/*;q=0.8"], "text/plain; charset=utf-8"),
                ("/json", (), "application/json"), ("/status?format=json", (), "application/json"),
                ("/status", ["Accept: application/json"], "application/json"),
                ("/prometheus", (), "text/plain; version=0.0.4; charset=utf-8"),
                ("/status", ["Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"],
                 "text/plain; version=0.0.4; charset=utf-8"),
                ("/status?format=text", ["Accept: application/json"], "text/plain; charset=utf-8"),
                ("/json?format=text", (), "application/json"),
            ):
                with self.subTest(uri=uri, fields=fields):
                    got = s.ask(uri, fields)
                    self.assertEqual((got.status, got.get("content-type")), (200, [kind]))
                    self.assertEqual(got.get("content-length"), [str(len(got.body))])
            page = s.ask("/json").json()
            self.assertEqual([(f["name"], f["loaded"], f["failure_mode"], f["recipe"]["batch_end"],
                               f["recipe"]["all_cpus"]) for f in page["filters"]],
                             [("a", True, "closed", True, True), ("b", True, "open", False, False)])
            calls = [m for m in page["metrics"] if m["name"] == "pxg_guest_calls_total"]
            self.assertEqual({(m["labels"]["config"], m["labels"]["phase"], m["value"]) for m in calls},
                             {("a", "request_headers", 1), ("a", "response_headers", 1)})
            text = s.ask("/text").body.decode()
            self.assertIn("a: loaded\n  filter operator of ", text)
            self.assertIn("pxg_guest_calls_total\n  1  guest=operator-test filter=operator config=a", text)
            numbers = s.numbers()
            self.assertEqual(numbers['pxg_recipe{config="b",step="batch_end"}'], 0)
            self.assertEqual(numbers['pxg_recipe{config="a",step="warm_up"}'], 1)
            with Client(f"{s.path}/n.sock") as c:
                c.send(b"POST /status HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
                self.assertEqual(c.answer().status, 405)
            for uri in ("/json", "/text", "/prometheus"):
                with Client(f"{s.path}/n.sock") as c:
                    c.send(f"HEAD {uri} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n".encode())
                    got = c.answer("HEAD")
                    self.assertEqual((got.status, got.get("cache-control"), c.rest()), (200, ["no-store"], b""))
                    self.assertGreater(int(got.get("content-length")[0]), 100)

    def test_without_filters(self):
        with self.served("", "") as s:
            self.assertIn(b"0 filters", s.ask("/status").body)
            self.assertEqual(s.ask("/status?format=json").json()["metrics"], [])


    def test_schema(self):
        """What the README promises of the JSON, and no more."""
        with self.served(filter_of("a", "count"), "proxy_golang a;") as s:
            s.ask("/x")
            page = s.ask("/status?format=json").json()
            kind = lambda v: {k: type(v[k]) for k in v}
            self.assertEqual(kind(page), {"host": str, "version": str, "module": str, "abi": str, "worker": int, "filters": list,
                                          "workers": dict, "metrics": list})
            self.assertEqual((page["host"], page["version"], page["abi"]), ("nginx", harness.version(), "1.0"))
            self.assertIn(page["worker"], s.nginx.workers())
            with open(f"{harness.HERE}/../debian/changelog") as f:
                self.assertIn(f"({page['module']})", f.readline())
            self.assertEqual(kind(page["filters"][0]), {"name": str, "guest": str, "filter": str, "loaded": bool,
                                                        "failure_mode": str, "recipe": dict})
            self.assertEqual(kind(page["filters"][0]["recipe"]), {"batch_end": bool, "warm_up": bool, "all_cpus": bool})
            self.assertEqual(kind(page["workers"]), dict.fromkeys(
                ["pxg_worker_starts_total", "pxg_worker_refused_filters_total", "pxg_worker_wakes_total",
                 "pxg_worker_completions_total", "pxg_worker_batch_ends_total"], int))
            for m in page["metrics"]:
                self.assertEqual(kind(m) | {"value": 0}, {"name": str, "type": str, "labels": dict, "value": 0})
                self.assertIn(type(m["value"]), (int, float))

    def test_parsers(self):
        """What Prometheus' own parser makes of the page is what the JSON says, whatever a guest has in its labels."""
        from prometheus_client.parser import text_string_to_metric_families  # Debian: python3-prometheus-client.
        wild = 'quote\\" back\\\\slash\\ttab \x01 \xc3\xa9 \xff'
        http = filter_of("a", "count " + wild) + filter_of("b", "pend") + filter_of("c", "error x")
        with folder() as path:
            s = Served(path, "", "")
            s.set(http, "location /x { proxy_golang a b; } location /c { proxy_golang c; }", encoding="latin1")
            with s.nginx:
                for uri in ("/x", "/x", "/c"):
                    s.ask(uri)
                text = s.ask("/status?format=prometheus").body.decode()
                page = s.ask("/status?format=json").json()
        families = list(text_string_to_metric_families(text))
        names = [(f.name, f.type) for f in families]  # Without `_total`: the gauge pxg_guest_pending has its counter's name.
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual([f.name for f in families if not f.documentation], ["pxg_user_operator_test_seen"])
        key = lambda name, labels: (name, *sorted(labels.items()))
        read = {key(x.name, x.labels): x.value for f in families for x in f.samples}
        self.assertEqual(len(read), sum(len(f.samples) for f in families))
        # The parser adds `_total` to a counter that has none.
        said = {key(m["name"].replace("test_seen", "test_seen_total"), m["labels"]): m["value"] for m in page["metrics"]}
        for k, v in said.items():
            self.assertAlmostEqual(read.pop(k), v, 6)
        self.assertEqual({k[0] for k in read}, {"pxg_recipe", "pxg_host_info", *page["workers"]})
        kinds = [dict(k[1:])["kind"] for k in said if k[0] == "pxg_user_operator_test_seen_total"]
        self.assertEqual(kinds, ['quote" back\\slash\ttab \x01 \u00e9 \\xff'])
        for f in families:
            if f.type != "histogram":
                continue
            series = {}
            for x in f.samples:
                labels = dict(x.labels)
                le = labels.pop("le", None)
                series.setdefault(key("", labels), {})[x.name.rpartition("_")[2], le] = x.value
            for values in series.values():
                buckets = [(float(le), v) for (what, le), v in values.items() if what == "bucket"]
                self.assertEqual(buckets, sorted(buckets))
                self.assertEqual((buckets[-1][0], buckets[-1][1]), (float("inf"), values["count", None]))
                self.assertGreater(values["sum", None], 0)


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


class Processes(Test):
    def test_master_and_helpers_load_nothing(self):
        http = filter_of("a", "header x") + "proxy_cache_path PATH/cache keys_zone=c:1m;"
        with folder() as path:
            s = Served(path, http.replace("PATH", path), "", workers=2)
            with s.nginx:
                workers = wait_for("workers", lambda: len(s.nginx.workers()) == 2 and s.nginx.workers())
                wait_for("the guests", lambda: len(re.findall("worker ready, 1 filters", s.nginx.log())) == 2)

                def mapped(pid):
                    with open(f"/proc/{pid}/maps") as f:
                        return GUEST in f.read()
                wait_for("the cache manager", lambda: len(children(s.nginx.process.pid)) > len(workers))
                others = [s.nginx.process.pid] + [p for p in children(s.nginx.process.pid) if p not in workers]
                self.assertEqual([p for p in others if mapped(p)], [])
                self.assertEqual([p for p in workers if not mapped(p)], [])
                # Each is the only one of its process.
                self.assertEqual([what for _, what in s.life() if "up" in what], ["worker 0 of 1 up"] * 2)

    def order(self, s, pid):
        return [what for who, what in s.life() if who == str(pid)]

    def test_graceful_end(self):
        http = filter_of("a", "pend", LIMITS.format(90000)) + filter_of("b", "header x")
        server = """location /x { proxy_golang a b; proxy_golang_override b { config "header y"; } }"""
        with self.served(http, server) as s:
            s.ask("/x")
            pid = s.nginx.workers()[0]
            s.nginx.quit()
            life = self.order(s, pid)
            self.assertEqual(life[:5], ["new a pend", "new b header", "new b header", "worker 0 of 1 up", "batch end"])
            self.assertEqual(sorted(life[5:8]),
                             ["drop a pend draining=1", "drop b header draining=1", "drop b header draining=1"])
            self.assertEqual(life[8:], ["worker 0 of 1 down"])

    def test_fast_end_with_requests_pending(self):
        with self.served(filter_of("a", "never", "pend_limit 60s;"), "location /x { proxy_golang a; }") as s:
            with Client(f"{s.path}/n.sock") as c:
                c.send(b"GET /x HTTP/1.1\r\nHost: e\r\n\r\n")
                wait_for("it pends", lambda: "batch end" in s.nginx.log())
                pid = s.nginx.workers()[0]
                s.nginx.signal(signal.SIGTERM)
                s.nginx.process.wait(harness.DEADLINE)
                self.assertEqual(self.order(s, pid), ["new a never", "worker 0 of 1 up", "batch end", "cancel",
                                                      "drop a never draining=1", "worker 0 of 1 down"])

    def test_deadlines_in_any_order(self):
        """Each in its time and none early, whatever deadline was the first one."""
        limits = {"long": 60, "late": 0.9, "soon": 0.3, "soonest": 0.1}
        http = "".join(filter_of(n, "never", LIMITS.format(int(t * 1000))) for n, t in limits.items())
        with self.served(http, "".join(f"location /{n} {{ proxy_golang {n}; }}" for n in limits)) as s:
            with contextlib.ExitStack() as clients:
                began, asked = {}, {n: clients.enter_context(Client(f"{s.path}/n.sock")) for n in limits}
                for n, c in asked.items():
                    began[n] = time.monotonic()
                    c.send(f"GET /{n} HTTP/1.1\r\nHost: e\r\n\r\n".encode())
                    if n == "long":
                        wait_for("it pends", lambda: s.number("pxg_guest_pending", config="long") == 1)
                for n in ("soonest", "soon", "late"):
                    self.assertEqual(asked[n].answer().status, 500)
                    self.assertGreaterEqual(time.monotonic() - began[n], limits[n])
                self.assertEqual(s.number("pxg_guest_pending", config="long"), 1)

    def test_pending_requests_outlive_a_graceful_end(self):
        with self.served(filter_of("a", "never", "pend_limit 700ms; failure_mode open;"),
                         "location /x { proxy_golang a; }") as s:
            with Client(f"{s.path}/n.sock") as c:
                c.send(b"GET /x HTTP/1.1\r\nHost: e\r\n\r\n")
                wait_for("it pends", lambda: "batch end" in s.nginx.log())
                s.nginx.signal(signal.SIGQUIT)
                self.assertEqual(c.answer().status, 200)
                s.nginx.process.wait(harness.DEADLINE)

    def test_guests_see_a_graceful_end(self):
        """While the loop has nothing else to do."""
        for end in ("reload", "quit"):
            with self.subTest(end), self.served(filter_of("a", "drain", "pend_limit 60s;"),
                                                "location /x { proxy_golang a; }") as s:
                with Client(f"{s.path}/n.sock") as c:
                    c.send(b"GET /x HTTP/1.1\r\nHost: e\r\n\r\n")
                    wait_for("it pends", lambda: "batch end" in s.nginx.log())
                    s.nginx.signal(signal.SIGHUP if end == "reload" else signal.SIGQUIT)
                    self.assertEqual(c.answer().status, 200)

    def test_batch_end(self):
        """Once for all that came in one turn of the loop, and not where it is off."""
        http = filter_of("a", "pend") + filter_of("b", "pend", "batch_end off;")
        with self.served(http, "location /a { proxy_golang a; alias /dev/null; }"
                               "location /b { proxy_golang b; alias /dev/null; }") as s:
            s.ask("/b")
            self.assertNotIn("batch end", s.nginx.log())
            worker = s.nginx.workers()[0]
            clients = [Client(f"{s.path}/n.sock") for _ in range(16)]
            for c in clients:  # Accepted, each in a turn of its own.
                c.send(b"GET /status HTTP/1.1\r\nHost: e\r\n\r\n")
                c.answer()
            os.kill(worker, signal.SIGSTOP)
            try:
                for c in clients:
                    c.send(b"GET /a HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n")
            finally:
                os.kill(worker, signal.SIGCONT)
            for c in clients:
                self.assertIsNotNone(c.answer())
                c.socket.close()
            ends = s.nginx.log().count("batch end")
            self.assertEqual(s.number("pxg_guest_pending_total", config="a"), 16)
            self.assertTrue(1 <= ends < 16, ends)
            self.assertEqual(s.number("pxg_worker_batch_ends_total"), ends)

    def test_without_a_master(self):
        """A reload, after which nginx itself accepts nothing any more, does not touch guests."""
        http = filter_of("a", "header one")
        server, main = "location /x { proxy_golang a; }", "master_process off;"
        with self.served(http, server, main=main) as s:
            self.assertEqual(s.ask("/x").get("x-guest"), ["one"])
            self.assertEqual(s.number("pxg_guest_calls_total", phase="request_headers"), 1)
            s.set("proxy_golang_metrics_zone 2m;" + http.replace("header one", "header two"), server, main=main)
            s.nginx.signal(signal.SIGHUP)
            wait_for("a word on it", lambda: "restart nginx" in s.nginx.log())
            self.assertIn("proxy_golang_metrics_zone stays at 1048576 bytes", s.nginx.log())

            def ended():
                # A signal that comes while nginx reads its configuration is looked at behind the next event only.
                if s.nginx.process.poll() is None:
                    s.nginx.signal(signal.SIGTERM)
                return s.nginx.process.poll() is not None
            wait_for("the end", ended)
            self.assertEqual(s.nginx.process.returncode, 0)
            self.assertEqual([what for _, what in s.life()],
                             ["new a header", "worker 0 of 1 up", "drop a header draining=1", "worker 0 of 1 down"])

    def test_binary_upgrade(self):
        """Which also brings a new file of the module, while a reload does not."""
        with folder() as path:
            module = shutil.copy(harness.MODULE, f"{path}/module.so")
            s = Served(path, filter_of("a", "count"), "location /x { proxy_golang a; }", module=module)
            pids = []

            def master():
                with contextlib.suppress(FileNotFoundError, ValueError), open(f"{path}/nginx.pid") as f:
                    pid = int(f.read())
                    return pid not in pids and pid
            try:
                # nginx takes the signal only if whoever started it has gone since.
                subprocess.run(["sh", "-c", f'"$@" & until [ -s {path}/nginx.pid ]; do sleep 0.01; done', "sh",
                                *s.nginx.command()], check=True, stdin=subprocess.DEVNULL, timeout=harness.DEADLINE * 3)
                pids.append(wait_for("the master", master, harness.DEADLINE * 3))
                wait_for("its worker", lambda: "worker ready" in s.nginx.log())
                s.ask("/x")
                self.assertNotIn("[warn]", s.nginx.log())
                os.rename(shutil.copy(module, f"{module}.new"), module)
                s.nginx.master = pids[0]
                s.nginx.reload()
                wait_for("a warning", lambda: "is another file than the one that nginx has loaded" in s.nginx.log())
                self.assertEqual(s.ask("/status?format=json").json()["workers"]["pxg_worker_starts_total"], 2)
                os.kill(pids[0], signal.SIGUSR2)
                pids.append(wait_for("the new master", master, harness.DEADLINE * 3))
                wait_for("its worker", lambda: s.nginx.log().count("worker ready") == 3)
                os.kill(pids[0], signal.SIGQUIT)
                wait_for("the old one's end", lambda: not harness.alive(pids[0]))
                s.ask("/x")
                self.assertEqual(s.number("pxg_guest_calls_total", config="a", phase="request_headers"), 1)
                self.assertNotIn("[alert]", s.nginx.log())
                self.assertEqual(s.nginx.log().count("is another file"), 1)
                os.unlink(module)
                os.kill(pids[1], signal.SIGHUP)
                wait_for("a warning", lambda: "is not there any more" in s.nginx.log())
            finally:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                for pid in pids:
                    wait_for("the end", lambda: not harness.alive(pid))


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
