#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How masters and workers begin and end with guests in them, and what guests see of it.

    PXG_NGINX_MODULE=MODULE.so tests/processes.py [unittest arguments]      Environment: see harness.py.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import harness
from harness import Client, children, folder, wait_for
from served import LIMITS, Served, Test, filter_of, guest


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
                        return guest() in f.read()
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
