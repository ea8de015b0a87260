#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is counted, over workers and reloads, and the status location.

    PXG_NGINX_MODULE=MODULE.so tests/status.py [unittest arguments]      Environment: see harness.py.
"""

import os
import signal
import sys
import unittest

import harness
from harness import Client, children, folder, wait_for
from served import Served, Test, filter_of


class Counting(Test):
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


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
