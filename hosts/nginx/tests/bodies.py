#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Bodies: memory under slow peers, whose limits run when, and what ends an exchange.

    PXG_NGINX_MODULE=MODULE.so tests/bodies.py [unittest arguments]        environment: see harness.py
"""

import concurrent.futures
import contextlib
import hashlib
import os
import socket
import threading
import unittest

import harness
from harness import ask, request

WORDS = ("pass", "twice", "once", "hold", "head", "whole", "deny", "cut")
PIECE = bytes(range(256)) * 256  # 64 KiB.
LARGE = int(os.environ.get("PXG_TEST_LARGE", "24")) << 20
# KiB that a worker may grow by, whatever the size of a body; sanitizers keep what was freed.
ROOM = 1 << 20 if harness.PRELOAD else 8 << 10


class Upstream:
    """A plain server, one thread for each connection: `serve(connection, path, rest)`."""

    def __init__(self, path):
        self.serve, self.aborted = None, threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                c, _ = self.listener.accept()
                c.settimeout(harness.DEADLINE * 3)
                threading.Thread(target=self.one, args=(c,), daemon=True).start()

    def one(self, c):
        with c, contextlib.suppress(OSError):
            held = b""
            while b"\r\n\r\n" not in held:
                got = c.recv(65536)
                if not got:
                    return
                held += got
            head, _, rest = held.partition(b"\r\n\r\n")
            self.serve(c, head, rest)


def length_of(head):
    for line in head.decode("latin1").lower().split("\r\n"):
        if line.startswith("content-length: "):
            return int(line[16:])
    return 0


def resident(pid):
    return harness.status_of(pid, "VmRSS")


class Bodies(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = cls.enterClassContext(harness.folder())
        guest = harness.build_c("bodies.c")
        cls.up = Upstream(f"{cls.path}/up")
        with open(f"{cls.path}/html/large", "wb") as f:
            for _ in range(LARGE // len(PIECE)):
                f.write(PIECE)
        with open(f"{cls.path}/html/small", "wb") as f:
            f.write(PIECE * 16)
        filters = "".join(f"proxy_golang_filter {w} {{ guest {guest}; filter bodies; config {w}; pend_limit 20s; hold_limit 60s; "
                          f"max_body 1m; }}\n" for w in WORDS)
        places = "".join(f"""
    location /{w}/ {{ proxy_golang {w}; proxy_pass http://unix:{cls.path}/up:/; }}
    location /{w}/direct/ {{ proxy_golang {w}; proxy_request_buffering off; proxy_buffering off; proxy_http_version 1.1;
                             proxy_pass http://unix:{cls.path}/up:/; }}
    location /{w}/html/ {{ proxy_golang {w}; alias {cls.path}/html/; }}
    location /{w}/next/ {{ proxy_golang {w}; proxy_next_upstream error timeout http_500 non_idempotent; proxy_pass http://two/; }}
""" for w in WORDS)
        conf = harness.head(cls.path, f"load_module {harness.MODULE}; user root; worker_processes 1;") + f"""
events {{ worker_connections 256; }}
http {{
  {harness.temp_paths(cls.path)}
  {filters}
  client_max_body_size 0; proxy_max_temp_file_size 0; lingering_timeout 1s; sendfile on;
  upstream two {{ server unix:{cls.path}/up max_fails=0; server unix:{cls.path}/up max_fails=0; }}
  server {{ listen unix:{cls.path}/n; {places} }}
  server {{ listen unix:{cls.path}/impatient; send_timeout 1s; client_body_timeout 1s; {places} }}
}}
"""
        cls.nginx = cls.enterClassContext(harness.Nginx(cls.path, conf, f"{cls.path}/n"))
        cls.to = f"{cls.path}/n"  # With nginx's own limits, which no test comes near,
        cls.impatient = f"{cls.path}/impatient"  # and with limits of 1 s for clients.

    def tearDown(self):
        bad = [line for line in self.nginx.log().splitlines() if "[alert]" in line or "[emerg]" in line or "[crit]" in line]
        self.assertEqual(bad, [])

    def worker(self):
        return harness.wait_for("a worker", self.nginx.workers)[0]

    def sends(self, n):
        def serve(c, head, rest):
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % n)
            for _ in range(n // len(PIECE)):
                c.sendall(PIECE)
        self.up.serve = serve

    # A client that takes little at a time: the upstream waits, and nothing piles up between them.
    def slowly(self, path, expected):
        before = resident(self.worker())
        most, got = before, 0
        with harness.Client(self.to) as c:
            c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            c.send(request("GET", path, ("Connection: close",)))
            head = c.until(b"\r\n\r\n")
            self.assertIn(b" 200 ", head)
            digest = hashlib.sha256(c.held)
            got += len(c.held)
            chunked = b"chunked" in head
            while piece := c.socket.recv(1 << 18):
                digest.update(piece)
                got += len(piece)
                most = max(most, resident(self.worker()))
        if not chunked:
            self.assertEqual(got, expected)
            whole = hashlib.sha256()
            for _ in range(LARGE // len(PIECE)):
                whole.update(PIECE)
            self.assertEqual(digest.digest(), whole.digest())
        else:
            self.assertGreaterEqual(got, expected)
        if os.environ.get("PXG_TEST_SAY"):
            print(f"{path}: {got} bytes, the worker grew by {most - before} KiB")
        self.assertLess(most - before, ROOM)

    def test_memory_of_downloads(self):
        self.sends(LARGE)
        for path, factor in (("/pass/x", 1), ("/pass/direct/x", 1), ("/pass/html/large", 1), ("/once/x", 1),
                             ("/once/html/large", 1), ("/twice/x", 2), ("/twice/direct/x", 2)):
            with self.subTest(path=path):
                self.slowly(path, LARGE * factor)

    def test_memory_of_a_download_that_nobody_takes(self):
        """The upstream cannot send it all while a client does not read, whether or not a guest makes more of it."""
        sent = [0]
        def serve(c, head, rest):
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % LARGE)
            for _ in range(LARGE // len(PIECE)):
                c.sendall(PIECE)
                sent[0] += len(PIECE)
        self.up.serve = serve
        for path in ("/pass/x", "/twice/x", "/pass/direct/x", "/twice/direct/x"):
            with self.subTest(path=path):
                sent[0] = 0
                with harness.Client(self.impatient) as c:
                    c.send(request("GET", path))
                    # nginx gives this client up after send_timeout; until then the upstream must not get far.
                    harness.wait_for("the client is given up", lambda: self.nginx.log().count("client timed out") > 0)
                self.assertLess(sent[0], LARGE // 2)
                open(self.nginx.error_log, "w").close()

    def test_memory_of_uploads(self):
        """An upstream that takes little at a time makes the client wait where nginx does not store requests."""
        for path in ("/pass/direct/x", "/once/direct/x", "/pass/x", "/once/x", "/twice/x"):
            with self.subTest(path=path):
                seen = [0, hashlib.sha256()]
                def serve(c, head, rest):
                    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    n = length_of(head)
                    while True:
                        seen[0] += len(rest)
                        seen[1].update(rest)
                        if seen[0] >= n:
                            break
                        rest = c.recv(1 << 18)
                        if not rest:
                            return
                    c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                self.up.serve = serve
                before = resident(self.worker())
                most = before
                with harness.Client(self.to, harness.DEADLINE * 3) as c:
                    c.send(f"POST {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: {LARGE}\r\n\r\n".encode())
                    for _ in range(LARGE // len(PIECE)):
                        c.send(PIECE)
                        most = max(most, resident(self.worker()))
                    self.assertEqual(c.answer().body, b"okok" if "twice" in path else b"ok", self.nginx.log()[-600:])
                self.assertEqual(seen[0], LARGE * (2 if "twice" in path else 1))
                if "twice" not in path:
                    whole = hashlib.sha256()
                    for _ in range(LARGE // len(PIECE)):
                        whole.update(PIECE)
                    self.assertEqual(seen[1].digest(), whole.digest())
                if os.environ.get("PXG_TEST_SAY"):
                    print(f"{path}: {seen[0]} bytes, the worker grew by {most - before} KiB")
                self.assertLess(most - before, ROOM)

    # nginx's limits are for clients.
    def test_a_guest_may_withhold_longer_than_nginx_waits_for_a_client(self):
        def serve(c, head, rest):
            n = length_of(head)
            while len(rest) < n:
                rest += c.recv(65536)
            said = b"took %d" % len(rest)
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(said) + said)
        self.up.serve = serve
        asked = (("/hold/x", b"x" * 1000, b"took 1000"), ("/hold/direct/x", b"x" * 1000, b"took 1000"),
                 ("/head/x", None, b"took 0"), ("/hold/x", None, b"took 0"), ("/head/html/small", None, PIECE * 16))
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            got = list(pool.map(lambda a: ask(self.impatient, a[0], "POST" if a[1] else "GET", body=a[1]), asked))
        for (path, body, said), answer in zip(asked, got):
            with self.subTest(path=path, body=body):
                self.assertEqual((answer.status, answer.body == said), (200, True))

    def test_a_slow_client_still_meets_them(self):
        clients = {path: harness.Client(self.impatient) for path in ("/pass/x", "/hold/x", "/whole/x")}
        for path, c in clients.items():
            c.send(b"POST %s HTTP/1.1\r\nHost: e\r\nContent-Length: 100\r\n\r\nabc" % path.encode())
        for path, c in clients.items():
            with self.subTest(path=path), c:
                got = c.answer()
                self.assertTrue(got is None or got.status == 408, got and got.line)

    # Ends.
    def test_a_reply_ends_the_upstream(self):
        over = threading.Event()
        def serve(c, head, rest):
            c.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PIECE)
            with contextlib.suppress(OSError):
                while c.recv(100):
                    pass
            over.set()
        self.up.serve = serve
        for path in ("/cut/x", "/cut/direct/x"):
            with self.subTest(path=path), harness.Client(self.to) as c:
                over.clear()
                for _ in range(2):  # The client's connection goes on.
                    c.send(request("GET", path))
                    got = c.answer()
                    self.assertEqual((got.status, got.body), (403, b"denied\n"))
                    self.assertTrue(over.wait(harness.DEADLINE), "the upstream's connection is still open")
                    over.clear()

    def test_a_reply_to_a_request_that_is_still_sent(self):
        self.up.serve = lambda *_: self.fail("the upstream was asked")
        with harness.Client(self.to) as c:
            c.send_aside(request("POST", "/deny/x", body=b"x" * (4 << 20)))
            got = c.answer()
            self.assertIn(got.status, (403, 413))

    def test_whole_of_a_response_that_breaks_off(self):
        def serve(c, head, rest):
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        self.up.serve = serve
        self.assertEqual(ask(self.to, "/whole/x").status, 502)
        got = ask(self.to, "/pass/x")
        self.assertEqual((got.status, got.framing, got.body), (200, "cut", b"abc"))

    def test_another_upstream_gets_the_same_body(self):
        tries = []
        def serve(c, head, rest):
            n = length_of(head)
            while len(rest) < n:
                rest += c.recv(65536)
            tries.append(rest)
            status = b"500 No" if len(tries) % 2 else b"200 OK"
            c.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        self.up.serve = serve
        for word in ("pass", "whole", "twice", "once"):
            for body in (b"small", PIECE * 4):
                with self.subTest(word=word, size=len(body)):
                    tries.clear()
                    self.assertEqual(ask(self.to, f"/{word}/next/x", "POST", body=body).status, 200)
                    self.assertEqual(len(tries), 2)
                    self.assertEqual(tries[0], tries[1])
                    self.assertEqual(len(tries[0]), len(body) * (2 if word == "twice" else 1))

    def test_a_client_that_goes_away(self):
        asked = threading.Event()
        def serve(c, head, rest):
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            asked.set()
        self.up.serve = serve
        for path in ("/hold/x", "/head/x"):
            with self.subTest(path=path):
                asked.clear()
                seen = self.nginx.log().count("prematurely closed connection")
                with harness.Client(self.to) as c:
                    c.send(request("POST", path, body=b"x" * 100))
                    if "head" in path:
                        self.assertTrue(asked.wait(harness.DEADLINE), "the upstream was not asked")
                harness.wait_for("nginx notices", lambda: self.nginx.log().count("prematurely closed connection") > seen)
        self.assertEqual(ask(self.to, "/pass/html/small").status, 200)


if __name__ == "__main__":
    unittest.main()
