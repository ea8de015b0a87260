#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The glue alone, in a real nginx: tests/driver.c stands in the engine's place and does what x-drive says.

    tests/glue.py MODULE.so [unittest arguments]        Environment: see harness.py.
"""

import hashlib
import json
import os
import sys
import threading
import unittest

import echo
import harness
from echo import BIG, BODY


class Glue(echo.Echo, unittest.TestCase):
    @classmethod
    def conf(cls, inside=""):
        up = f"proxy_pass http://unix:{cls.dir}/up.sock"
        return cls.configuration(f"proxy_golang_filter one {{ guest {cls.dir}/none.so; {inside} }}", f"""
    proxy_golang one;
    location /file.txt {{ }}
    location /up {{ {up}; }}
    location /stream {{ {up}; proxy_request_buffering off; proxy_http_version 1.1; }}
    location /direct {{ {up}; proxy_buffering off; }}
    location /moved {{ error_page 502 = @other; proxy_pass http://unix:{cls.dir}/none.sock; }}
    location @other {{ {up}; }}
    location /plain {{ proxy_golang off; {up}; }}
""")

    def drive(self, path, drive="", method="GET", fields=(), body=None):
        return self.ask(path, method, [*fields, f"X-Drive: {drive}"] if drive else fields, body)


class Requests(Glue):
    def test_nothing_is_changed_without_a_wish(self):
        a, b = self.drive("/up/x?y=1"), self.drive("/plain")
        self.assertEqual((a.status, b.status), (200, 200))
        strip = lambda r: [f for f in json.loads(r.body)["fields"]]
        self.assertEqual(strip(a), strip(b))
        self.assertEqual(json.loads(a.body)["line"], "GET /up/x?y=1 HTTP/1.0")

    def test_request_fields(self):
        got = self.drive("/up/old?q=1", "edit", fields=[
            "X-Remove: 1", "x-remove: 2", "X-At: first", "X-At: second", "Cookie: a=1", "Cookie: b=2",
            "X-Path: /up/new%20path?z=2", "X-Authority: other.example:81", "Range: bytes=0-1"])
        said = json.loads(got.body)
        self.assertEqual(said["line"], "GET /up/new%20path?z=2 HTTP/1.0")
        held = said["fields"]
        values = lambda name: [v for n, v in held if n == name]
        self.assertEqual(values("x-remove"), [])
        self.assertNotIn("", [n.strip(": ") for n, v in held])
        self.assertEqual(values("x-at"), ["at"])
        self.assertEqual(values("x-set"), ["set"])
        self.assertEqual(values("x-add"), ["1", "2"])
        self.assertEqual(values("cookie"), ["c=driver"])
        self.assertEqual(values("user-agent"), ["driver"])
        self.assertEqual(values("x-fault"), [])
        view = values("x-view-request")[0]
        self.assertTrue(view.startswith(":method=GET|:scheme=http|:authority=e|:path=/up/old?q=1|"), view)
        self.assertIn("|x-remove=1|x-remove=2|x-at=first|x-at=second|cookie=a=1|cookie=b=2|", view)
        self.assertNotIn("|host=", view)

    def test_response_fields(self):
        got = self.drive("/up", "edit")
        self.assertEqual(got.status, 203)
        self.assertEqual(got.get("content-type"), ["text/driver"])
        self.assertEqual(got.get("last-modified"), [])
        self.assertEqual(got.get("server"), ["driver"])
        self.assertEqual(got.get("x-remove"), [])
        self.assertEqual(got.get("x-at"), ["at"])
        self.assertEqual(got.get("x-add"), ["1", "2"])
        self.assertEqual(got.get("cache-control"), ["a", "b"])
        view = got.get("x-view-response")[0]
        self.assertTrue(view.startswith(":status=200|content-type=application/json|"), view)
        self.assertIn("|last-modified=Mon, 28 Sep 1970 06:00:00 GMT|", view)

    def test_response_fields_of_a_file(self):
        view = self.drive("/file.txt", "edit").get("x-view-response")[0]
        self.assertTrue(view.startswith(":status=200|content-type=text/plain|content-length=1048576|last-modified="), view)
        self.assertIn("|etag=", view)

    def test_pending_at_request_headers(self):
        self.assertEqual(json.loads(self.drive("/up", "rh=20").body)["length"], 0)
        self.assertEqual(self.drive("/file.txt", "rh=20").body, BIG)

    def test_many_pending_on_one_worker(self):
        got = []
        threads = [threading.Thread(target=lambda: got.append(self.drive("/up", "rh=30 sh=10").status)) for _ in range(20)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(got, [200] * 20)

    def body(self, path, drive, fields=(), chunked=False):
        if chunked:
            c = self.connect()
            c.send(f"POST {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\nX-Drive: {drive}\r\n"
                   "Transfer-Encoding: chunked\r\n\r\n".encode())
            for at in range(0, len(BODY), 10000):
                part = BODY[at:at + 10000]
                c.send(b"%x\r\n%s\r\n" % (len(part), part))
            c.send(b"0\r\n\r\n")
            got = c.answer()
        else:
            got = self.drive(path, drive, "POST", fields, BODY)
        said = json.loads(got.body)
        self.assertEqual((said["length"], said["sha"]), (len(BODY), hashlib.sha256(BODY).hexdigest()))

    def test_request_body_passes(self):
        for path in ("/up", "/stream"):
            for drive in ("sh=1", "rh=20", "rb=20", "whole", "rh=20 rb=20", "whole rb=20"):
                for chunked in (False, True):
                    with self.subTest(path=path, drive=drive, chunked=chunked):
                        self.body(path, drive, chunked=chunked)

    def test_small_body_withheld(self):
        for path in ("/up", "/stream"):
            said = json.loads(self.drive(path, "rb=20", "POST", (), b"abc").body)
            self.assertEqual(said["length"], 3)

    def test_reply(self):
        before = self.upstream.seen
        for drive in ("reply", "rh=20 reply"):
            got = self.drive("/up", drive)
            self.assertEqual((got.status, got.body), (403, b"denied\n"))
            self.assertEqual((got.get("x-reply"), got.get("content-length")), (["yes"], ["7"]))
        got = self.drive("/up", "reply", "POST", (), BODY)
        self.assertEqual(got.status, 403)
        self.assertEqual(self.drive("/up", "reply", "HEAD").body, b"")
        self.assertEqual(self.upstream.seen, before)

    def test_reset(self):
        self.assertEqual(self.drive("/up", "reset").line, "")

    def test_client_goes_while_pending(self):
        before = self.upstream.seen
        for _ in range(20):
            with self.connect() as c:
                c.send(b"GET /up HTTP/1.1\r\nHost: e\r\nX-Drive: rh=100\r\n\r\n")
        self.assertEqual(self.drive("/up", "rh=150").status, 200)  # Later than all of them.
        self.assertEqual(self.upstream.seen, before + 1)

    def test_internal_redirect_keeps_the_stream(self):
        got = self.drive("/moved", "edit rh=10")
        said = json.loads(got.body)
        self.assertEqual([v for n, v in said["fields"] if n == "x-add"], ["1", "2"])


class Responses(Glue):
    def test_body_passes(self):
        for path in ("/up/big", "/direct/big", "/file.txt"):
            for drive in ("", "sh=20", "sb=20", "sh=20 sb=20", "rh=10 sh=10 sb=10"):
                with self.subTest(path=path, drive=drive):
                    got = self.drive(path, drive)
                    self.assertEqual(got.status, 200)
                    self.assertEqual(len(got.body), len(BIG))
                    self.assertEqual(got.body, BIG)

    def test_head(self):
        for path in ("/up", "/file.txt"):
            for drive in ("", "sh=20", "sb=20"):
                with self.subTest(path=path, drive=drive):
                    got = self.drive(path, drive, "HEAD")
                    self.assertEqual((got.status, got.body), (200, b""))

    def test_not_modified(self):
        when = self.drive("/file.txt").get("last-modified")[0]
        got = self.drive("/file.txt", "sh=20", fields=[f"If-Modified-Since: {when}"])
        self.assertEqual((got.status, got.body), (304, b""))

    def test_keepalive_and_pipelining(self):
        c = self.connect()
        one = b"GET /up/%d HTTP/1.1\r\nHost: e\r\nX-Drive: rh=5 sh=5 sb=5\r\n\r\n"
        last = b"GET /up/9 HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"
        c.send(b"".join(one % i for i in range(9)) + last)
        raw = c.rest()
        self.assertEqual(raw.count(b"HTTP/1.1 200 OK"), 10)
        at = [raw.index(b"GET /up/%d " % i) for i in range(10)]
        self.assertEqual(at, sorted(at))


class Directives(Glue):
    def test_messages(self):
        for inside, expected in (
            ("failure_mode ajar;", 'invalid value "ajar" in "failure_mode" directive, expected open or closed in'),
            ("failure_status 404;", 'invalid value "404" in "failure_status"'),
            ("pend_limit soon;", 'invalid value "soon" in "pend_limit"'),
            ("colour red;", 'unknown directive "colour" in proxy_golang_filter "one"'),
            ("config a; config b;", '"config" of "one" is duplicate'),
            ("config_file none.conf;", "none.conf"),
            ("max_body;", '"max_body" of "one" has 0 values, expected one in'),
            ("config bad;", "refused by the driver in"),
        ):
            with self.subTest(inside=inside):
                self.refused(self.conf(inside), expected)


del Glue  # unittest would run it.

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    harness.MODULE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
