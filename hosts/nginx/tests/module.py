#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The module with its engine and a guest, in a real nginx.

    tests/module.py MODULE.so GUEST.so [unittest arguments]      GUEST.so: tests/guest.c; nginx: $PXG_NGINX
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

import glue
from glue import BIG, BODY, Glue

GUEST = ""
WORDS = ("headers", "pend", "whole", "stream", "deny", "late", "never")


class Module(Glue):
    @classmethod
    def conf(cls, inside="", more="", guest=None):
        d = cls.dir
        limit = lambda w: "100ms" if w == "never" else "10s"
        filters = "".join(f"proxy_golang_filter {w} {{ guest {guest or GUEST}; filter test; config {w}; "
                          f"pend_limit {limit(w)}; {inside} }}\n"
                          for w in WORDS)
        places = "".join(f"""
    location /{w}/ {{ proxy_golang {w}; proxy_pass http://unix:{d}/up.sock:/; }}
    location /{w}/file {{ proxy_golang {w}; alias {d}/html; }}
    location /{w}/off {{ proxy_golang {w}; proxy_request_buffering off; proxy_http_version 1.1;
                         proxy_pass http://unix:{d}/up.sock:/; }}""" for w in WORDS)
        return f"""
load_module {glue.MODULE};
daemon off; user root; worker_processes 1; pid {d}/nginx.pid; error_log {d}/error.log info;
events {{ worker_connections 64; }}
http {{
  access_log {d}/access.log;
  client_body_temp_path {d}/body; proxy_temp_path {d}/proxy; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u;
  scgi_temp_path {d}/s;
  {filters}
  {more}
  server {{
    listen unix:{d}/n.sock;
    sendfile on;
    {places}
    location /both/ {{ proxy_golang pend whole headers pend; proxy_pass http://unix:{d}/up.sock:/; }}
  }}
}}
"""

    def echo(self, path, body=b""):
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
        got = []
        run = lambda: [got.append(self.ask("/pend/").get("x-guest")) for _ in range(10)]
        threads = [threading.Thread(target=run) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
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
        for method, body in (("GET", b""), ("POST", BODY)):
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
        s = self.connect()
        s.sendall(b"GET /never/ HTTP/1.1\r\nHost: e\r\n\r\n")
        s.close()
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
        for _ in range(5):
            self.nginx.send_signal(signal.SIGHUP)
            seen, end = len(got), time.monotonic() + glue.DEADLINE
            while len(got) < seen + 40 and time.monotonic() < end:
                time.sleep(0.01)
        stop.set()
        for t in threads:
            t.join()
        self.assertGreaterEqual(len(got), 200)
        self.assertEqual([g for g in got if g != ["thread"]], [])

    def test_validation(self):
        text = f"{self.dir}/text.so"
        with open(text, "w") as f:
            f.write("no library")
        for conf, expected in (
            (self.conf().replace("config headers;", "config refuse;"), "no word of this guest"),
            (self.conf(guest=f"{self.dir}/none.so"), "none.so"),
            (self.conf(guest=text), "text.so"),
            (self.conf().replace("filter test;", "filter toast;"), "toast"),
        ):
            with self.subTest(expected=expected):
                path = f"{self.dir}/bad.conf"
                with open(path, "w") as f:
                    f.write(conf)
                got = subprocess.run([glue.NGINX, "-t", "-p", self.dir, "-c", path, "-e", "stderr"],
                                     capture_output=True, text=True, timeout=glue.DEADLINE)
                self.assertNotEqual(got.returncode, 0)
                self.assertIn(expected, got.stderr)
                self.assertRegex(got.stderr, r"bad\.conf:\d+")


del Glue  # unittest would run its empty self.

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    glue.MODULE = os.path.abspath(sys.argv.pop(1))
    GUEST = os.path.abspath(sys.argv.pop(1))
    unittest.main()
