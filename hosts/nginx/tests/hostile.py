#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What must not become a way past the proxy: guests that change what frames or routes a message, clients that send what
nginx and an upstream would read differently, and endings that a guest's suspension meets half way.

    PXG_NGINX_MODULE=MODULE.so tests/hostile.py [unittest arguments]      Environment: see harness.py.
"""

import contextlib
import json
import os
import select
import unittest

import harness
from harness import Client, Nginx, Upstream, folder, request

VERSION = tuple(int(n) for n in harness.version().split("."))

# Filters by name: commands of guests/features.c.
FILTERS = {
    "to-get": "request set :method GET",
    "to-head": "request set :method HEAD",
    "to-head-reply": "request set :method HEAD\nresponse set x-seen 1",
    "reply": "reply 403 denied",
    "grant": "reply 200 granted",
    "grant-parts": "stream 3",
    "authority-up": "request set :authority ..\nview",
    "authority-dot": "request set :authority files.test.:80",
    "view": "view",
    "resize": "resize",
    "to-404": "response set :status 404",
    "to-204": "response set :status 204",
    "to-alias": "request set :path /files/file.txt\nrecompute",
    "to-proxy": "request set :path /proxied/x\nrecompute",
}


def conf(path, features, words, bodies):
    filters = ""
    for name, commands in FILTERS.items():
        with open(f"{path}/{name}.txt", "w") as f:
            f.write(commands)
        filters += (f"proxy_golang_filter {name} {{ guest {features}; filter features; config_file {path}/{name}.txt; "
                    "clusters app; }\n")
    return f"""
load_module {harness.MODULE};
{harness.head(path)}
worker_processes 1;
user root;
events {{ worker_connections 64; }}
http {{
  {harness.temp_paths(path)}
  access_log off;
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  upstream app {{ server unix:{path}/up.sock; }}
  {filters}
  proxy_golang_filter pieces {{ guest {bodies}; filter bodies; config whole; }}
  proxy_golang_filter hold {{ guest {bodies}; filter bodies; config hold; }}
  proxy_golang_filter look {{ guest {bodies}; filter bodies; config look; }}
  proxy_golang_filter add {{ guest {bodies}; filter bodies; config add; }}
  proxy_golang_filter endless {{ guest {features}; filter features; config 'stream 400'; hold_limit 300ms; }}
  proxy_golang_filter pend {{ guest {words}; filter test; config pend; }}
  proxy_golang_filter whole {{ guest {words}; filter test; config whole; hold_limit 60s; }}
  server {{
    listen unix:{path}/n.sock;
    root {path}/html;
    location /to-get/ {{ proxy_golang to-get; proxy_pass http://app; }}
    location /to-get/file/ {{ proxy_golang to-get; alias {path}/html/; }}
    location /to-get/resized/ {{ proxy_golang to-get resize; proxy_pass http://app; }}
    location /to-get/replied/ {{ proxy_golang to-get reply; proxy_pass http://app; }}
    location /to-head/ {{ proxy_golang to-head; proxy_pass http://app; }}
    location /to-head/file/ {{ proxy_golang to-head; alias {path}/html/; }}
    location /to-head/resized/ {{ proxy_golang to-head resize; proxy_pass http://app; }}
    location /to-head/replied/ {{ proxy_golang to-head reply; proxy_pass http://app; }}
    location /plain/ {{ proxy_pass http://app; }}
    location /added/ {{ proxy_golang grant; add_after_body /refused.txt; addition_types *; proxy_pass http://app; }}
    location /added/parts/ {{ proxy_golang grant-parts; add_after_body /refused.txt; addition_types *; proxy_pass http://app; }}
    location /up/ {{ proxy_golang authority-up view; root {path}/html/$host; }}
    location /dot/ {{ proxy_golang authority-dot; alias {path}/html/$host/; }}
    location /seen/ {{ proxy_golang view; alias {path}/html/$host/; }}
    location /a/long/way/alias/ {{ proxy_golang to-alias; proxy_pass http://app; }}
    location /a/long/way/proxy/ {{ proxy_golang to-proxy; proxy_pass http://app; }}
    location /files/ {{ alias {path}/html/; }}
    location /proxied/ {{ proxy_pass http://app/replaced/; }}
    location /pieces/ {{ proxy_golang pieces; alias {path}/html/; }}
    location /look/ {{ proxy_golang look; alias {path}/html/; }}
    location /look/up/ {{ proxy_golang look; proxy_pass http://app; }}
    location /add/ {{ proxy_golang add; alias {path}/html/; }}
    location /late/304/ {{ proxy_golang to-404 pend; alias {path}/html/; }}
    location /late/200/ {{ proxy_golang to-204 pend; alias {path}/html/; }}
    location /late/up/ {{ proxy_golang to-404 pend; proxy_pass http://app; }}
    location /late/up/200/ {{ proxy_golang to-204 pend; proxy_pass http://app; }}
    location /endless/ {{ proxy_golang endless; send_timeout 1s; proxy_pass http://app; }}
    location /held/ {{
      proxy_golang whole; client_max_body_size 64k; proxy_pass http://app;
      error_page 400 413 = /refused.txt;
    }}
    location = /refused.txt {{ }}
    location /nobody/ {{ proxy_golang hold; proxy_pass http://unix:{path}/nobody.sock; error_page 502 /broken.txt; }}
    location = /broken.txt {{ gzip_static always; gunzip on; }}
    location /held/named/ {{
      proxy_golang whole; client_max_body_size 64k; proxy_pass http://app;
      error_page 400 413 = @refused;
    }}
    location @refused {{ proxy_golang view; return 200 "refused"; }}
  }}
}}
"""


def echo(said, connection):
    if said.path.endswith("/none"):
        connection.say(b"HTTP/1.1 204 No Content\r\n\r\n")
        return True
    body = json.dumps({"target": said.path, "method": said.method, "fields": said.fields}).encode()
    connection.say(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%s"
                   % (len(body), b"" if said.method == "HEAD" else body))
    return True


BIG = b"".join(b"%07x\n" % i for i in range(50000))
GUESTS = ("features.c", "test.c", "bodies.c")


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kept = contextlib.ExitStack()
        cls.addClassCleanup(cls.kept.close)
        cls.path = cls.kept.enter_context(folder())
        cls.at = f"{cls.path}/n.sock"
        os.mkdir(f"{cls.path}/html/files.test")
        for name in ("file.txt", "refused.txt", "files.test/file.txt"):
            with open(f"{cls.path}/html/{name}", "w") as f:
                f.write(f"this is {name}\n")
        with open(f"{cls.path}/html/big.txt", "wb") as f:
            f.write(BIG)
        with open(f"{cls.path}/html/broken.txt.gz", "wb") as f:
            f.write(b"this is no gzip")
        os.mkdir(f"{cls.path}/up")
        with open(f"{cls.path}/up/secret", "w") as f:
            f.write("not below html")
        cls.up = cls.kept.enter_context(Upstream(f"{cls.path}/up.sock", echo))
        cls.nginx = cls.kept.enter_context(Nginx(cls.path, conf(cls.path, *map(harness.build_c, GUESTS)), cls.at))

    def pair(self, method, path, **more):
        """A request, and another one that follows on the connection: both answers, none of the one in the other."""
        with Client(self.at) as c:
            c.send(request(method, path, **more) + request("GET", "/plain/next"))
            first, second = c.answer(method), c.answer()
        self.assertIsNotNone(second, first.head)
        self.assertEqual(second.status, 200, second.head + second.body)
        self.assertEqual(second.json()["target"], "/plain/next")
        return first

    # ---- What the client asked with frames its answer --------------------------------------------------------------

    def test_a_head_that_a_guest_makes_a_get_has_no_body(self):
        for path, status in (("/to-get/", 200), ("/to-get/file/file.txt", 200), ("/to-get/resized/", 200),
                             ("/to-get/replied/", 403)):
            with self.subTest(path=path):
                self.assertEqual(self.pair("HEAD", path).status, status)

    def test_a_get_that_a_guest_makes_a_head_is_answered_whole(self):
        for path, status, body in (("/to-head/", 200, b""), ("/to-head/file/file.txt", 200, b""),
                                   ("/to-head/resized/", 200, b""), ("/to-head/replied/", 403, b"denied")):
            with self.subTest(path=path):
                got = self.pair("GET", path)
                self.assertEqual((got.status, got.body), (status, body), got.head)
                self.assertIn(got.framing, ("length", "chunked"))

    def test_a_status_that_changes_after_the_head_was_held(self):
        """nginx has decided by then whether a body follows, by the status that it had."""
        for path, fields, status in (("/late/304/file.txt", ("If-None-Match: *",), 404), ("/late/200/file.txt", (), 204),
                                     ("/late/up/none", (), 404), ("/late/up/200/x", (), 204)):
            with self.subTest(path=path):
                got = self.pair("GET", path, fields=fields)
                self.assertEqual((got.status, got.body), (status, b""), got.head)

    # ---- A body that leaves in pieces, with its end, after its head was held ----------------------------------------

    def test_several_ranges_of_a_body_in_pieces(self):
        before = len(self.nginx.log())
        got = self.pair("GET", "/pieces/big.txt", fields=("Range: bytes=1-5",))
        self.assertEqual((got.status, got.body), (206, BIG[1:6]))
        got = self.pair("GET", "/pieces/big.txt", fields=("Range: bytes=1-5,200000-300000",))
        self.assertEqual((got.status, got.body == BIG), (200, True), got.head)
        self.assertNotIn("[alert]", self.nginx.log()[before:])

    # ---- A guest that stops looking at a body -----------------------------------------------------------------------

    def test_what_was_shown_to_a_tap_leaves_once(self):
        for path in ("/look/file.txt", "/look/big.txt"):
            with self.subTest(path=path):
                got = self.pair("GET", path)
                self.assertEqual((got.framing, got.body), ("length", b"this is file.txt\n" if "file" in path else BIG))
        got = self.pair("POST", "/look/up/x", body=b"a body")
        self.assertEqual((got.framing, got.json()["target"]), ("length", "/look/up/x"))

    def test_content_length_holds_for_what_passes_unseen(self):
        with Client(self.at) as c:
            c.send(request("GET", "/add/big.txt") + request("GET", "/plain/next"))
            self.assertLess(len(c.rest()), len(BIG) + 500)

    # ---- What other modules add to a reply --------------------------------------------------------------------------

    def test_a_reply_with_something_behind_it_has_an_end(self):
        for path in ("/added/", "/added/parts/"):
            with self.subTest(path=path):
                got = self.pair("GET", path)
                self.assertEqual((got.status, got.framing), (200, "chunked"), got.head)
                self.assertTrue(got.body.endswith(b"this is refused.txt\n"), got.body)

    # ---- The authority ---------------------------------------------------------------------------------------------

    def test_an_authority_that_is_no_host_changes_nothing(self):
        """`root html/$host`: nginx itself refuses such names from clients."""
        with Client(self.at) as c:
            c.send(request("GET", "/up/secret", ("Connection: close",), host="files.test"))
            got = c.answer()
        self.assertEqual(got.status, 404, got.head + got.body)

    def test_a_host_is_what_nginx_makes_of_it(self):
        """Without the dot at its end and the port, by a guest or by the client's request line."""
        got = self.pair("GET", "/dot/file.txt")
        self.assertEqual((got.status, got.body), (200, b"this is files.test/file.txt\n"))
        got = self.pair("GET", "http://files.test.:80/seen/file.txt")
        self.assertEqual((got.status, got.body), (200, b"this is files.test/file.txt\n"))

    # ---- A location that is chosen again ---------------------------------------------------------------------------

    def test_a_location_chosen_again_is_taken_as_any(self):
        got = self.pair("GET", "/a/long/way/alias/x")
        self.assertEqual((got.status, got.body), (200, b"this is file.txt\n"))
        self.assertEqual(self.pair("GET", "/a/long/way/proxy/x").json()["target"], "/replaced/x")

    # ---- A client that does not read -------------------------------------------------------------------------------

    def test_send_timeout_ends_a_streamed_reply_that_nobody_reads(self):
        """Whatever guests, and limits of theirs that are shorter, do meanwhile."""
        with Client(self.at) as c:
            c.send(request("GET", "/endless/"))
            ended = select.poll()
            ended.register(c.socket, 0)
            self.assertEqual([e for _, e in ended.poll(harness.DEADLINE * 1000)], [select.POLLHUP])

    # ---- An error of nginx's own while a guest waits ---------------------------------------------------------------

    def test_an_error_page_does_not_wait_for_a_body_that_is_refused(self):
        big = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for path, body in (("/held/", b"THIS IS REFUSED.TXT\n"), ("/held/named/", b"REFUSED")):
            for what, sent in (("too large", big + big), ("no chunk", b"zz\r\n")):
                with self.subTest(path=path, what=what), Client(self.at) as c:
                    c.send(request("POST", path, ("Transfer-Encoding: chunked",)))
                    c.send_aside(sent)
                    got = c.answer()
                    self.assertIsNotNone(got)
                    self.assertEqual((got.status, got.body.upper().strip()), (200, body.strip()), got.head)

    def test_an_answer_that_fails_when_a_guest_lets_go_of_the_request_ends_it_once(self):
        """Nobody serves, the error page breaks off: all that within the guest's completion."""
        before = len(self.nginx.log())
        with Client(self.at) as c:
            c.send(request("POST", "/nobody/x", body=b"a body"))
            c.rest()
        said = self.nginx.log()[before:]
        self.assertIn("inflate() failed", said)
        self.assertNotIn("[alert]", said)
        self.assertEqual(self.pair("GET", "/plain/x").status, 200)


if __name__ == "__main__":
    unittest.main()
