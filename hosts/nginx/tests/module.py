#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The module with its engine and a guest, in a real nginx.

    PXG_NGINX_MODULE=MODULE.so tests/module.py [unittest arguments]      Environment: see harness.py.
"""

import concurrent.futures
import hashlib
import json
import sys
import threading
import unittest

import echo
import harness
from echo import BIG, BODY

WORDS = ("headers", "pend", "whole", "stream", "deny", "late", "never")


class Module(echo.Echo, unittest.TestCase):
    @classmethod
    def conf(cls, guest=None):
        guest = guest or harness.build_c("test.c")
        up = f"proxy_pass http://unix:{cls.dir}/up.sock:/"
        limit = {"never": "100ms"}
        filters = "".join(f"proxy_golang_filter {w} {{ guest {guest}; filter test; config {w}; "
                          f"pend_limit {limit.get(w, '60s')}; }}\n" for w in WORDS)
        return cls.configuration(filters, "".join(f"""
    location /{w}/ {{ proxy_golang {w}; {up}; }}
    location /{w}/file {{ proxy_golang {w}; alias {cls.dir}/html; }}
    location /{w}/off {{ proxy_golang {w}; proxy_request_buffering off; proxy_http_version 1.1; {up}; }}
""" for w in WORDS) + f"location /both/ {{ proxy_golang pend whole headers pend; {up}; }}")

    def echo(self, path, body=None):
        got = self.ask(path, method="POST" if body else "GET", body=body)
        self.assertEqual(got.status, 200)
        return got, json.loads(got.body.lower())

    def guest(self, said):
        return [v for n, v in said["fields"] if n == "x-guest"]

    def test_headers(self):
        got, said = self.echo("/headers/")
        self.assertEqual((self.guest(said), got.get("x-guest")), (["sync"], ["sync"]))
        self.assertEqual(self.ask("/headers/file/file.txt").get("x-guest"), ["sync"])

    def test_pending_and_completed_by_a_thread(self):
        got, said = self.echo("/pend/")
        self.assertEqual((self.guest(said), got.get("x-guest")), (["thread"], ["thread"]))
        got = self.ask("/pend/file/file.txt")
        self.assertEqual((got.get("x-guest"), got.body), (["thread"], BIG))
        got, said = self.echo("/pend/", BODY)
        self.assertEqual(said["length"], len(BODY))
        self.assertEqual(self.ask("/pend/file/file.txt", method="HEAD").get("x-guest"), ["thread"])

    def test_many_pending(self):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda _: self.ask("/pend/").get("x-guest"), range(80)))
        self.assertEqual(got, [["thread"]] * 80)

    def test_whole_bodies(self):
        for path in ("/whole/", "/whole/off"):
            with self.subTest(path=path):
                got, said = self.echo(path, BODY)
                self.assertEqual((said["length"], said["sha"]),
                                 (len(BODY) + 1, hashlib.sha256(BODY.upper() + b"\n").hexdigest()))
                self.assertEqual(got.body, got.body.upper())
                self.assertTrue(got.body.endswith(b"}\n"))
                self.assertEqual(got.get("content-length"), [str(len(got.body))])
        got = self.ask("/whole/file/file.txt")
        self.assertEqual(got.body, BIG.upper() + b"\n")

    def test_streamed_bodies(self):
        for path in ("/stream/", "/stream/off"):
            with self.subTest(path=path):
                _, said = self.echo(path, BODY)
                self.assertEqual((said["length"], said["sha"]), (len(BODY), hashlib.sha256(BODY).hexdigest()))
        self.assertEqual(self.ask("/stream/file/file.txt").body, BIG)
        self.assertEqual(self.ask("/stream/big").body, BIG)

    def test_reply(self):
        before = self.upstream.seen
        for method, body in (("GET", None), ("POST", BODY)):
            got = self.ask("/deny/", method=method, body=body)
            self.assertEqual((got.status, got.body, got.get("x-reply")), (403, b"denied\n", ["yes"]))
        self.assertEqual(self.ask("/deny/", method="HEAD").status, 403)
        self.assertEqual(self.upstream.seen, before)

    def test_reply_to_a_response(self):
        for path in ("/late/", "/late/big", "/late/file/file.txt"):
            got = self.ask(path)
            self.assertEqual((got.status, got.body, got.get("content-length")), (403, b"denied\n", ["7"]))

    def test_deadline(self):
        got = self.ask("/never/")
        self.assertEqual(got.status, 500)
        with self.connect() as c:
            c.send(b"GET /never/ HTTP/1.1\r\nHost: e\r\n\r\n")
        self.assertEqual(self.ask("/never/", method="HEAD").status, 500)

    def test_chain(self):
        got, said = self.echo("/both/", BODY)
        self.assertEqual(self.guest(said), ["thread", "sync", "thread"])
        self.assertEqual(said["sha"], hashlib.sha256(BODY.upper() + b"\n").hexdigest())
        self.assertEqual(got.get("x-guest"), ["thread", "sync", "thread"])

    def test_reload_with_requests_pending(self):
        got, stop = [], threading.Event()

        def run():
            while not stop.is_set():
                got.append(self.ask("/pend/").get("x-guest"))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for t in threads:
            t.start()
        try:
            for _ in range(5):
                seen = len(got)
                self.nginx.reload()
                harness.wait_for("requests behind a reload", lambda: len(got) >= seen + 40, harness.DEADLINE * 3)
        finally:
            stop.set()
        for t in threads:
            t.join()
        self.assertGreaterEqual(len(got), 200)
        self.assertEqual([g for g in got if g != ["thread"]], [])

    def test_validation(self):
        text = f"{harness.build_folder()}/text.so"
        with open(text, "w") as f:
            f.write("no library")
        for conf, expected in (
            (self.conf().replace("config headers;", "config refuse;"), "no word of this guest"),
            (self.conf(guest=f"{self.dir}/none.so"), "none.so"),
            (self.conf(guest=text), "text.so"),
            (self.conf().replace("filter test;", "filter toast;"), "toast"),
        ):
            with self.subTest(expected=expected):
                self.refused(conf, expected)


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
