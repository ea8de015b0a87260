#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Guests that edit, replace and suspend what comes over TLS and HTTP/2, and what nginx keeps in its cache.

    PXG_NGINX_MODULE=MODULE.so tests/transports.py [unittest arguments]      Environment: see harness.py.
"""

import concurrent.futures
import hashlib
import json
import ssl
import subprocess
import unittest

import harness
from behaviours.versions import H2
from harness import Client, Nginx, Upstream, folder, request

VERSION = tuple(int(n) for n in harness.version().split("."))
BODY = b"0123456789abcdef" * 20_000  # 320 KB: many TLS records and DATA frames.
STREAMS = 40


def answer(said, connection):
    """What came, as JSON; behind /big the same with as much again as a body."""
    held = {n.lower(): v for n, v in said.fields}
    body = json.dumps({"guests": [v for n, v in said.fields if n.lower() == "x-guest"], "length": len(said.body),
                       "sha": hashlib.sha256(said.body).hexdigest(), "turn": connection.server.seen,
                       "id": held.get("x-id", "")}).encode()
    if "/big" in said.path:
        body = BODY
    connection.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return True


def conf(path, guest):
    filters = "".join(f"proxy_golang_filter {w} {{ guest {guest}; filter test; config {w}; pend_limit 60s; hold_limit 60s; }}\n"
                      for w in ("headers", "pend", "whole", "stream", "never"))
    http2 = ("http2", "") if VERSION < (1, 25, 1) else ("", "http2 on;")
    return f"""
load_module {harness.MODULE};
{harness.head(path)}
worker_processes 1;
user root;
events {{ worker_connections 512; }}
http {{
  {harness.temp_paths(path)}
  access_log off; client_max_body_size 0;
  proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_cache_path {path}/temp/cache keys_zone=c:1m;
  {filters}
  server {{
    listen unix:{path}/n.sock;
    listen unix:{path}/tls.sock ssl {http2[0]}; {http2[1]}
    ssl_certificate {path}/c.pem; ssl_certificate_key {path}/k.pem;
    location / {{ proxy_golang headers pend stream; proxy_pass http://unix:{path}/up.sock:/; }}
    location /whole/ {{ proxy_golang pend whole headers; proxy_pass http://unix:{path}/up.sock:/; }}
    location /unbuffered/ {{
      proxy_golang headers pend stream; proxy_request_buffering off; proxy_buffering off;
      proxy_pass http://unix:{path}/up.sock:/;
    }}
    location /never/ {{ proxy_golang never; proxy_pass http://unix:{path}/up.sock:/; }}
    location /cached/ {{
      proxy_cache c; proxy_cache_valid 200 1h; add_header X-Cache $upstream_cache_status;
      proxy_golang headers pend stream; proxy_pass http://unix:{path}/up.sock:/;
    }}
    location /cached/whole/ {{
      proxy_cache c; proxy_cache_valid 200 1h; proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s;
      add_header X-Cache $upstream_cache_status;
      proxy_golang pend whole; proxy_pass http://unix:{path}/up.sock:/big/;
    }}
    location /status {{ proxy_golang_status json; }}
  }}
}}
"""


class Transports(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = cls.enterClassContext(folder())
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", f"{cls.path}/k.pem", "-out", f"{cls.path}/c.pem", "-days", "30", "-subj", "/CN=e"],
                       check=True, capture_output=True)
        cls.up = cls.enterClassContext(Upstream(f"{cls.path}/up.sock", answer))
        cls.nginx = cls.enterClassContext(Nginx(cls.path, conf(cls.path, harness.build_c("test.c")), f"{cls.path}/n.sock"))

    def tearDown(self):
        self.assertNotRegex(self.nginx.log(), r"\[(alert|emerg|crit)\]")

    def connect(self, *protocols):
        """A connection by TLS; `protocols` are offered by ALPN."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(protocols)
        c = Client(f"{self.path}/tls.sock")
        c.socket = context.wrap_socket(c.socket)
        return c

    def http2(self):
        test = self

        class Connecting:  # What H2 asks a run of behaviours for.
            def connect(self):
                c = test.connect("h2")
                test.assertEqual(c.socket.selected_alpn_protocol(), "h2")
                return c
        return H2(Connecting())

    def taken(self, h, sid):
        """Status, fields and body of a stream, once it has ended."""
        while not h.over and not h.done(sid):
            h.step()
        events = h.streams[sid]
        self.assertEqual([events[0][0], events[-1][0]], ["head", "end"], events)
        fields = [line.split(": ", 1) for line in events[0][1].split("\n")]
        body = b"".join(d for what, d in events if what == "data")
        return dict(fields)[":status"], [v for n, v in fields if n == "x-guest"], body

    def pending(self):
        with Client(f"{self.path}/n.sock") as c:
            c.send(request("GET", "/status", ("Connection: close",)))
            return sum(m["value"] for m in c.answer().json()["metrics"] if m["name"] == "pxg_guest_pending")

    # ---- TLS ---------------------------------------------------------------------------------------------------------

    def test_tls(self):
        whole = hashlib.sha256(BODY.upper() + b"\n").hexdigest()
        for word in ("", "unbuffered/", "whole/"):
            seen = ["thread", "sync"] if word == "whole/" else ["sync", "thread"]
            back = seen[::-1]
            with self.subTest(word), self.connect() as c:
                for _ in range(2):  # On one connection.
                    c.send(request("POST", f"/{word}x", body=BODY))
                    got = c.answer()
                    self.assertEqual((got.status, got.get("x-guest")), (200, back))
                    said = json.loads(got.body.lower())
                    self.assertEqual(said["guests"], seen)
                    expected = (len(BODY) + 1, whole) if word == "whole/" else (len(BODY), hashlib.sha256(BODY).hexdigest())
                    self.assertEqual((said["length"], said["sha"]), expected)
                c.send(request("GET", f"/{word}big"))
                self.assertEqual(c.answer().body, BODY.upper() + b"\n" if word == "whole/" else BODY)

    # ---- HTTP/2 ------------------------------------------------------------------------------------------------------

    def test_streams_that_wait_side_by_side(self):
        h = self.http2()
        with h.c:
            sent = {h.open("GET", ("/x", "/unbuffered/x")[i % 2], [("x-id", str(i))]): i for i in range(STREAMS)}
            for sid, i in sent.items():
                status, guests, body = self.taken(h, sid)
                self.assertEqual((status, guests, json.loads(body)["id"]), ("200", ["thread", "sync"], str(i)))

    def test_bodies_of_streams(self):
        h = self.http2()
        with h.c:
            for path in ("/x", "/unbuffered/x", "/whole/x"):
                sid = h.open("POST", path, [("content-length", str(len(BODY)))] if "un" not in path else [], end=False)
                h.body(sid, BODY)
                status, _, body = self.taken(h, sid)
                said = json.loads(body.lower())
                expected = BODY.upper() + b"\n" if "whole" in path else BODY
                self.assertEqual((status, said["length"]), ("200", len(expected)))
                self.assertEqual(said["sha"], hashlib.sha256(expected).hexdigest())
            big = {h.open("GET", path): path for path in ("/big", "/whole/big", "/unbuffered/big") * 3}
            for sid, path in big.items():
                self.assertEqual(self.taken(h, sid)[2], BODY.upper() + b"\n" if "whole" in path else BODY)

    def test_streams_that_are_reset_while_they_wait(self):
        before = self.up.seen
        h = self.http2()
        with h.c:
            waiting = [h.open("GET", "/never/x") for _ in range(STREAMS)]
            waiting += [h.open("POST", "/never/x", end=False) for _ in range(STREAMS)]
            harness.wait_for("all of them wait", lambda: self.pending() == 2 * STREAMS)
            for sid in waiting[::2]:
                h.h2.reset_stream(sid)
            h.flush()
            harness.wait_for("those that were reset do not", lambda: self.pending() == STREAMS)
            status, guests, _ = self.taken(h, h.open("GET", "/x"))
            self.assertEqual((status, guests), ("200", ["thread", "sync"]))
        harness.wait_for("nor the others, whose connection is gone", lambda: self.pending() == 0)
        self.assertEqual(self.up.seen, before + 1)

    # ---- The cache ---------------------------------------------------------------------------------------------------

    def test_what_the_cache_has_passes_guests_again(self):
        """It has what the upstream sent, not what guests made of it."""
        for place, back in (("/cached/x", ["thread", "sync"]), ("/cached/whole/x", ["thread"])):
            got = []
            with self.subTest(place), self.connect() as tls, Client(f"{self.path}/n.sock") as plain:
                for c in (tls, plain, tls):
                    c.send(request("GET", place))
                    got.append(c.answer())
                self.assertEqual([a.get("x-cache") for a in got], [["MISS"], ["HIT"], ["HIT"]])
                for a in got:
                    self.assertEqual((a.status, a.get("x-guest")), (200, back))
                self.assertEqual(len({a.body for a in got}), 1)
                if "whole" in place:
                    self.assertEqual(got[0].body, BODY.upper() + b"\n")
                h = self.http2()
                with h.c:
                    status, guests, body = self.taken(h, h.open("GET", place))
                self.assertEqual((status, guests, body), ("200", back, got[0].body))

    def test_many_wait_for_what_is_not_cached_yet(self):
        before = self.up.seen

        def run(_):
            with self.connect() as c:
                c.send(request("GET", "/cached/whole/many"))
                a = c.answer()
                return a.status, a.body == BODY.upper() + b"\n"
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            self.assertEqual(list(pool.map(run, range(16))), [(200, True)] * 16)
        self.assertEqual(self.up.seen, before + 1)


if __name__ == "__main__":
    if not harness.MODULE:
        raise SystemExit(__doc__)
    unittest.main()
