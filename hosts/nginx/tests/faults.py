#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Faults, reloads and shutdowns with requests pending: what goes wrong in one place stays there.

    PXG_NGINX_MODULE=MODULE.so tests/faults.py [unittest arguments]

PXG_TEST_LONG=1 runs the long forms: 10,000 aborts, 100 reloads, 60 s of load with a reload each second. Each test has an
nginx of its own; figures are printed as RESULT lines. Environment: see harness.py.
"""

import concurrent.futures
import contextlib
import os
import re
import resource
import select
import shutil
import signal
import sys
import threading
import time
import unittest

import harness
from behaviours import answerer, response
from harness import ask, children, fds, request, status_of, wait_for

LONG = bool(os.environ.get("PXG_TEST_LONG"))
BODY = bytes(range(256)) * 1200  # 300 KB

guests = None


def figure(name, **values):
    print(harness.result_line(name, True, long=LONG, **values), flush=True)


def readable(client, seconds=0):
    return bool(select.select([client.socket], [], [], seconds)[0])


class Site:
    """An nginx with filters and places of a test, and its upstream."""

    FILTERS = """
  proxy_golang_filter pend { guest %SUSPEND%; filter pend; pend_limit 20s; max_pending 4000; }
  proxy_golang_filter brief { guest %SUSPEND%; filter pend; pend_limit 1s; }
  proxy_golang_filter faulty { guest %SUSPEND%; filter faulty; pend_limit 5s; }
  proxy_golang_filter suspend { guest %SUSPEND%; filter suspend; config "{\\"micros\\": 500}"; pend_default 20s; }
"""
    PLACES = """
    location / { proxy_golang pend; proxy_pass http://%UP%:/; }
    location /brief/ { proxy_golang brief; proxy_pass http://%UP%:/; }
    location /faulty/ { proxy_golang faulty; proxy_pass http://%UP%:/; }
    location /suspend/ { proxy_golang suspend; proxy_pass http://%UP%:/; }
    location /off/ { proxy_golang off; proxy_pass http://%UP%:/; }
    location /status { proxy_golang off; proxy_golang_status prometheus; }
"""

    def __init__(self, filters=None, places=None, workers=1, user="root", daemon="off"):
        self.filters, self.places, self.workers, self.user = filters or self.FILTERS, places or self.PLACES, workers, user
        self.daemon, self.suspend = daemon, guests.suspend
        self.stack = contextlib.ExitStack()

    def text(self):
        conf = harness.head(self.dir, f"load_module {harness.MODULE}; user {self.user}; worker_processes {self.workers};", self.daemon) + f"""
events {{ worker_connections 4096; }}
http {{
  {harness.temp_paths(self.dir)}
  access_log {self.dir}/logs/access.log; lingering_time 2s; lingering_timeout 500ms;
  {self.filters}
  server {{
    listen unix:{self.socket} backlog=4096; add_header X-Pid $pid always; client_max_body_size 1g;
    {self.places}
  }}
}}
"""
        return (conf.replace("%SUSPEND%", self.suspend).replace("%NOOP%", guests.noop).replace("%D%", self.dir)
                .replace("%UP%", f"unix:{self.dir}/up"))

    def prepare(self):
        self.dir = self.stack.enter_context(harness.folder())
        self.socket = f"{self.dir}/serve"
        return self

    def __enter__(self):
        if not hasattr(self, "dir"):
            self.prepare()
        try:
            self.upstream = self.stack.enter_context(harness.Upstream(f"{self.dir}/up", answerer({"/text": response(b"text\n")})))
            self.nginx = self.stack.enter_context(harness.Nginx(self.dir, self.text(), self.socket))
            self.worker = wait_for("a worker", lambda: self.nginx.workers()[:1])[0]
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error):
        if error[0]:
            print("".join(self.nginx.log().splitlines(True)[-30:]), file=sys.stderr)
        self.stack.close()

    def connect(self):
        return harness.Client(self.socket)

    def ask(self, path, *fields, method="GET", body=None):
        return ask(self.socket, path, method, fields, body)

    def pend(self, *fields, method="GET", body=None, path="/p"):
        """A request that is on its way; its answer is taken later. Without a body it has been sent, and one worker takes it
        before what is sent after it."""
        c = self.connect()
        (c.send_aside if body else c.send)(request(method, path, (*fields, "Connection: close"), body))
        return c

    def let_go(self, clients):
        """The answers of requests that wait at the gate. It is opened until they come: a request that the worker has taken
        may get to the gate after one that opens it, as their goroutines have no order."""
        def answered(c):
            return readable(c) or self.ask("/open").status == 200 and readable(c, 0.05)
        for c in clients:
            wait_for("the gate lets a request go", lambda: answered(c))
        return [c.answer() for c in clients]

    def baseline(self):
        """The worker's descriptors while it has nothing to do, and once a runtime has opened what it keeps."""
        a = self.ask("/p", "x-pend: 1ms")
        assert a.status == 200, a.head
        seen = []

        def still():
            seen.append(fds(self.worker))
            return len(seen) > 40 and len(set(seen[-40:])) == 1
        wait_for("the worker is idle", still)
        return seen[-1]

    def arrived(self, before, count):
        wait_for(f"{count} requests arrive", lambda: fds(self.worker) >= before + count)

    def alarms(self):
        return [line for line in self.nginx.log().splitlines() if re.search(r"\[(alert|emerg|crit)\]", line)]


class Faults(unittest.TestCase):
    maxDiff = None

    def good(self, answer, text="an answer"):
        self.assertIsNotNone(answer, text)
        self.assertEqual(answer.status, 200, answer.head)
        return answer

    # ---- Guest files -------------------------------------------------------------------------------------------------

    @unittest.skipUnless(os.getuid() == 0, "only root starts workers of another user")
    def test_guest_that_the_workers_user_cannot_read(self):
        site = Site(user="nobody nogroup").prepare()
        mine = f"{site.dir}/mine.so"
        shutil.copyfile(guests.suspend, mine)
        os.chmod(mine, 0o600)
        site.suspend = mine
        with self.subTest("nginx -t refuses it and names it"), harness.folder() as d:
            os.chmod(d, 0o777)
            ok, said = harness.Nginx(site.dir, site.text()).test()
            self.assertFalse(ok)
            self.assertRegex(said, r"(?s)mine\.so.*nginx\.conf:\d+")
        os.chmod(mine, 0o644)
        with site:
            self.good(site.ask("/p"))
            os.chmod(mine, 0o600)
            os.kill(site.worker, signal.SIGKILL)
            wait_for("another worker", lambda: [w for w in site.nginx.workers() if w != site.worker])
            self.assertEqual(site.ask("/p").status, 500)
            self.good(site.ask("/off/x"))
            self.assertRegex(site.nginx.log(), r"\[err(or)?\].*mine\.so")

    def test_guest_that_is_missing_at_a_reload(self):
        site = Site().prepare()
        mine = site.suspend = f"{site.dir}/mine.so"
        shutil.copyfile(guests.suspend, mine)
        with site:
            pending = site.pend("x-pend: gate")
            os.rename(mine, mine + ".away")
            before = site.nginx.workers()
            site.nginx.signal(signal.SIGHUP)
            wait_for("the refusal", lambda: re.search(r"\[emerg\].*mine\.so", site.nginx.log()))
            self.good(site.ask("/p"))
            self.assertEqual(site.nginx.workers(), before)
            with pending:
                self.good(*site.let_go([pending]))
            os.rename(mine + ".away", mine)
            site.nginx.reload()
            self.good(site.ask("/p"))

    def test_hot_swap_by_rename_and_reload(self):
        site = Site(filters="proxy_golang_filter label { guest %D%/mine.so; filter label; }\n"
                            "  proxy_golang_filter pend { guest %D%/mine.so; filter pend; }\n",
                    places="location / { proxy_golang pend label; proxy_pass http://%UP%:/; }\n").prepare()
        shutil.copyfile(guests.suspend, f"{site.dir}/mine.so")
        with site:
            with site.pend("x-pend: 1500ms") as old:
                self.assertEqual(site.ask("/p").get("x-version"), ["1"])
                shutil.copyfile(guests.second, f"{site.dir}/mine.so.new")
                os.rename(f"{site.dir}/mine.so.new", f"{site.dir}/mine.so")
                site.nginx.reload()
                self.assertEqual(site.ask("/p").get("x-version"), ["2"])
                self.assertEqual(self.good(old.answer()).get("x-version"), ["1"])
            self.assertEqual(site.alarms(), [])

    def test_two_go_runtimes_in_one_worker(self):
        filters = Site.FILTERS + f"""
  proxy_golang_filter second {{ guest {guests.second}; filter suspend; config "{{\\"micros\\": 300}}"; }}
  proxy_golang_filter label {{ guest {guests.second}; filter label; }}
"""
        with Site(filters, "location / { proxy_golang suspend second label pend; proxy_pass http://%UP%:/; }") as site:
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                got = list(pool.map(lambda i: site.ask(f"/{i}", method="POST", body=BODY[:i * 100]), range(200)))
            for i, a in enumerate(got):
                self.assertEqual((self.good(a).get("x-version"), a.json()["length"]), (["2"], i * 100))
            self.assertEqual(site.nginx.workers(), [site.worker])
            site.nginx.quit()
            self.assertEqual(site.alarms(), [])

    # ---- Workers that die or have little -----------------------------------------------------------------------------

    def test_worker_killed_with_requests_pending(self):
        with Site(workers=2) as site, contextlib.ExitStack() as stack:
            held = {}
            for _ in range(500):
                c = stack.enter_context(site.connect())
                c.send(request("GET", "/text"))
                held.setdefault(int(c.answer().get("x-pid")[0]), []).append(c)
                if len(held) == 2 and min(map(len, held.values())) >= 3:
                    break
            if len(held) < 2:
                self.skipTest("one worker took all of 500 connections")
            dead, alive = held
            for c in held[dead] + held[alive]:
                c.send(request("GET", "/text", ("x-pend: gate",)))
            seen = fds(alive)
            os.kill(dead, signal.SIGKILL)
            for c in held[dead]:
                self.assertIsNone(c.answer(), "the worker is dead")
            wait_for("the master starts another", lambda: len([w for w in site.nginx.workers() if w != dead]) == 2)
            # The master tells it first that the dead one's channel is gone, then of the new one's.
            wait_for("the other one has no more descriptors than before", lambda: fds(alive) <= seen)
            for a in site.let_go(held[alive]):
                self.assertEqual(self.good(a).get("x-pid"), [str(alive)])
            for _ in range(20):
                self.good(site.ask("/p"))
            self.assertEqual(len(site.alarms()), 1)
            self.assertIn("exited on signal 9", site.alarms()[0])

    def test_worker_under_memory_limit(self):
        with Site("proxy_golang_filter whole { guest %NOOP%; filter whole; max_body 512m; hold_limit 60s; }",
                  "location / { proxy_golang whole; proxy_pass http://%UP%:/; }") as site:
            self.good(site.ask("/p", method="POST", body=BODY))
            size = status_of(site.worker, "VmSize") * 1024
            resource.prlimit(site.worker, resource.RLIMIT_AS, (size + (24 << 20), resource.RLIM_INFINITY))
            got = []

            def post():
                with site.connect() as c:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        c.send(request("POST", "/p", ("Connection: close",), BODY * 200))
                    a = c.answer()
                    got.append(a.status if a else None)
            threads = [threading.Thread(target=post) for _ in range(3)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertTrue(all(s is None or s >= 500 for s in got), got)
            respawned = site.nginx.workers() != [site.worker]
            if respawned:
                wait_for("the master starts another", site.nginx.workers)
                self.assertRegex(site.nginx.log(), r"worker process \d+ exited")
            self.good(site.ask("/p", method="POST", body=BODY))
            figure("memory-limit", answers=got, respawned=respawned)

    def test_panics_fail_their_own_stream(self):
        with Site() as site:
            faults = ("panic", "nil", "zero-action", "error", "async-panic", "async-goexit", "async-forget", "unreturned", "reset")
            with site.pend("x-pend: gate") as other:
                for fault in faults:
                    with self.subTest(fault):
                        a = site.ask("/faulty/x", f"x-fault: {fault}")
                        if fault == "reset":
                            self.assertTrue(a is None or a.status >= 500, a)
                        else:
                            self.assertEqual(a.status, 500)
                    self.good(site.ask("/faulty/x"))
                with concurrent.futures.ThreadPoolExecutor(8) as pool:
                    got = list(pool.map(lambda i: site.ask("/faulty/x", *(["x-fault: async-panic"] if i % 2 else [])).status,
                                        range(100)))
                self.assertEqual(got, [200, 500] * 50)
                self.good(*site.let_go([other]))
            self.assertEqual(site.nginx.workers(), [site.worker])
            self.assertIn("faulty: panic in a goroutine, as asked for", site.nginx.log())
            self.assertEqual(site.alarms(), [])

    # ---- Clients -----------------------------------------------------------------------------------------------------

    def settled(self, site, descriptors):
        wait_for("descriptors are closed", lambda: fds(site.worker) <= descriptors)

    def test_aborts_while_pending(self):
        total = 10_000 if LONG else 1500
        with Site() as site:
            before, sizes = site.baseline(), []
            for at in range(0, total, 250):
                held = [site.pend("x-pend: never", *(["Content-Length: 5"] if i % 3 == 0 else [])) for i in range(250)]
                if at % 500 == 0:  # Some are gone before the worker has read them.
                    site.arrived(before, 250)
                for c in held:
                    c.socket.close()
                self.settled(site, before)
                sizes.append(status_of(site.worker, "VmRSS"))
            self.assertEqual(site.nginx.workers(), [site.worker])
            # max_pending is 4000: after 10,000 aborts, places that were leaked would make these fail.
            self.assertEqual(self.pending(site), 0)
            many = [site.pend("x-pend: gate") for _ in range(500)]
            site.arrived(before, 500)
            self.assertEqual(self.pending(site), 500)
            answers = site.let_go(many)
            late = sum(a is None or a.status != 200 for a in answers)
            for c in many:
                c.socket.close()
            self.assertEqual(late, 0)
            growth = sizes[-1] - sizes[len(sizes) // 2]
            if not harness.PRELOAD:  # Sanitizers keep what was freed.
                self.assertLess(growth, 4096, f"KiB, by batches: {sizes}")
            self.assertEqual(site.alarms(), [])
            self.assertEqual(self.pending(site), 0)
            figure("aborts", total=total, rss_kib=[sizes[0], sizes[len(sizes) // 2], sizes[-1]], descriptors=fds(site.worker) - before)

    def pending(self, site):
        """Requests that wait, as the module's status tells."""
        found = re.findall(r"^pxg_guest_pending\{[^}]*\} (\d+)", site.ask("/status").body.decode(), re.M)
        self.assertTrue(found, "no gauge of pending places")
        return sum(map(int, found))

    def test_body_posted_and_never_read(self):
        with Site() as site:
            before = site.baseline()
            with site.pend("x-pend: 300ms", method="POST", body=BODY) as c:
                self.assertEqual(self.good(c.answer()).json()["length"], len(BODY))
            with site.pend("x-pend: never", method="POST", body=BODY, path="/brief/x") as c:
                self.assertEqual(c.answer().status, 500)  # By pend_limit.
            for _ in range(20):
                c = site.connect()
                c.send(request("POST", "/brief/x", ("x-pend: never",), BODY)[:100_000])
                c.socket.close()
            self.settled(site, before)
            self.good(site.ask("/p"))
            self.assertEqual(site.nginx.workers(), [site.worker])
            self.assertEqual(site.alarms(), [])

    # ---- Reloads and shutdowns ---------------------------------------------------------------------------------------

    def test_reloads_do_not_grow(self):
        count = 100 if LONG else 10
        with Site() as site:
            sizes = []

            def measure():
                self.good(site.ask("/suspend/x", method="POST", body=BODY))
                wait_for("old workers are gone", lambda: len(children(site.nginx.master)) == 1)
                worker = site.worker = site.nginx.workers()[0]
                descriptors = site.baseline()
                return {"master": {"rss": status_of(site.nginx.master, "VmRSS"), "fds": fds(site.nginx.master),
                                   "threads": status_of(site.nginx.master, "Threads")},
                        "worker": {"rss": status_of(worker, "VmRSS"), "fds": descriptors}}
            for i in range(count):
                site.nginx.reload()
                if i in (2, count // 2, count - 1):
                    sizes.append(measure())
            first, last = sizes[0], sizes[-1]
            # Closed when nginx comes to it: an upstream's connection, or a channel to a worker that is gone.
            wait_for("descriptors as after the first reloads", lambda: fds(site.nginx.master) <= first["master"]["fds"]
                     and fds(site.worker) <= first["worker"]["fds"])
            self.assertEqual(last["master"]["threads"], 1)
            if not harness.PRELOAD:
                self.assertLess(last["master"]["rss"] - first["master"]["rss"], 256, sizes)
                self.assertLess(last["worker"]["rss"] - first["worker"]["rss"], 4096, sizes)
            self.assertEqual(site.alarms(), [])
            figure("reloads", count=count, sizes=sizes)

    def test_load_with_reloads(self):
        seconds = 60 if LONG else 5
        with Site(workers=2) as site:
            stop, counts, lost = threading.Event(), {"plain": 0, "pending": 0, "post": 0, "slow": 0}, []

            def load(kind):
                while not stop.is_set():
                    with site.connect() as c:
                        if kind == "post":
                            c.send(request("POST", "/suspend/x", ("Connection: close",), BODY[:50_000]))
                        elif kind == "plain":
                            c.send(request("GET", "/off/x", ("Connection: close",)))
                        else:
                            c.send(request("GET", "/p", ("x-pend: " + ("700ms" if kind == "slow" else "3ms"), "Connection: close")))
                        a = c.answer()
                    if a is None or a.status != 200 or (kind == "post" and a.json()["length"] != 50_000):
                        lost.append((kind, a and a.head))
                    counts[kind] += 1
            threads = [threading.Thread(target=load, args=(k,)) for k in ("plain", "pending", "pending", "post", "slow", "slow")]
            for t in threads:
                t.start()
            end, reloads = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                site.nginx.signal(signal.SIGHUP)
                reloads += 1
                stop.wait(1 if LONG else 0.7)
            stop.set()
            for t in threads:
                t.join()
            self.assertEqual(lost, [])
            self.assertEqual(site.alarms(), [])
            figure("load-with-reloads", seconds=seconds, reloads=reloads, lost=len(lost), **counts)

    @unittest.skipIf(harness.PRELOAD, "nginx starts the other binary with an empty environment")
    def test_binary_upgrade_with_requests_pending(self):
        with Site(daemon="on") as site:  # nginx takes the signal only if who started it is gone.
            old = site.nginx.master
            with site.pend("x-pend: 1500ms") as c:
                self.good(site.ask("/p"))  # So the other one was taken.
                site.nginx.signal(signal.SIGUSR2)
                new = int(wait_for("another master", lambda: os.path.exists(f"{site.dir}/nginx.pid.oldbin")
                                   and os.path.exists(f"{site.dir}/nginx.pid") and harness.read(f"{site.dir}/nginx.pid")))
                site.nginx.masters.append(new)
                fresh = wait_for("its worker", lambda: site.nginx.workers(new))[0]
                site.nginx.signal(signal.SIGWINCH)
                self.good(c.answer())
            wait_for("old workers are gone", lambda: not children(old) or children(old) == [new])
            self.assertEqual(self.good(site.ask("/p")).get("x-pid"), [str(fresh)])
            with site.pend("x-pend: 300ms") as c:
                site.nginx.signal(signal.SIGQUIT)
                self.assertEqual(self.good(c.answer()).get("x-pid"), [str(fresh)])
            site.nginx.ended()
            self.good(site.ask("/p"))
            self.assertEqual(site.alarms(), [])

    def test_graceful_shutdown_waits(self):
        with Site() as site:
            with site.pend("x-pend: 600ms") as c, site.pend("x-pend: 300ms", method="POST", body=BODY) as post:
                self.good(site.ask("/p"))
                site.nginx.signal(signal.SIGQUIT)
                self.assertEqual(self.good(post.answer()).json()["length"], len(BODY))
                self.good(c.answer())
                self.assertEqual(site.nginx.ended(), 0)
            self.assertEqual(site.alarms(), [])
            self.assertNotIn("exited on signal", site.nginx.log())

    def test_fast_shutdown_does_not(self):
        with Site() as site:
            before = site.baseline()
            held = [site.pend("x-pend: never") for _ in range(20)] + [site.pend("x-pend: never", method="POST", body=BODY)]
            site.arrived(before, len(held))
            site.nginx.signal(signal.SIGTERM)
            self.assertEqual(site.nginx.ended(), 0)
            for c in held:
                with c:
                    a = c.answer()
                    self.assertIsNone(a, a and a.head)
            self.assertNotIn("exited on signal", site.nginx.log())
            self.assertEqual(site.alarms(), [])


def main():
    global guests
    if not harness.MODULE:
        sys.exit("PXG_NGINX_MODULE is not set: it names ngx_http_proxy_golang_module.so for $PXG_NGINX")
    guests = harness.Guests()
    guests.second = harness.build_go(f"{harness.HERE}/guests/suspend", guests.suspend.replace("suspend.so", "second.so"), "2")
    ok = unittest.main(exit=False).result.wasSuccessful()
    print(harness.result_line("faults", ok, nginx=harness.version()))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
