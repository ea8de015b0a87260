#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The glue alone, in a real nginx: tests/driver.c stands in the engine's place and does what x-drive says.

    tests/glue.py MODULE.so [unittest arguments]        nginx: $PXG_NGINX, else /usr/sbin/nginx
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import unittest

MODULE = ""
NGINX = os.environ.get("PXG_NGINX", "/usr/sbin/nginx")
DEADLINE = float(os.environ.get("PXG_TEST_DEADLINE", "20"))  # Seconds: none waits so long if all is well.


class Upstream(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers with what it was sent, as JSON; /big: a megabyte whose bytes tell their place."""

    daemon_threads = True
    request_queue_size = 64
    seen = 0

    def handle_error(self, request, client_address):
        pass  # nginx may hang up on an answer; what is lost by that a test sees at the client.


class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().decode("latin1").rstrip("\r\n")
        fields = []
        while True:
            text = self.rfile.readline().decode("latin1").rstrip("\r\n")
            if not text:
                break
            name, _, value = text.partition(": ")
            fields.append([name.lower(), value])
        self.server.seen += 1
        held = dict(fields)
        body = b""
        if "content-length" in held:
            body = self.rfile.read(int(held["content-length"]))
        elif held.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        said = json.dumps({"line": line, "fields": fields, "length": len(body),
                           "sha": hashlib.sha256(body).hexdigest()}).encode()
        if "/big" in line:
            said = BIG
        head = (f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(said)}\r\n"
                "Last-Modified: Mon, 28 Sep 1970 06:00:00 GMT\r\nCache-Control: a\r\nCache-Control: b\r\n"
                "X-Remove: 1\r\nX-At: gone\r\nX-At: old\r\nConnection: close\r\n\r\n")
        self.wfile.write(head.encode())
        if not line.startswith("HEAD "):
            self.wfile.write(said)


BIG = b"".join(b"%08x" % i for i in range(1 << 17))
BODY = b"".join(b"%07x\n" % i for i in range(300 * 128))


class Reply:
    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin1").split("\r\n")
        self.line = lines[0]
        self.status = int(lines[0].split()[1]) if lines[0] else 0
        self.fields = [tuple(f.split(": ", 1)) for f in lines[1:]]
        held = dict((n.lower(), v) for n, v in self.fields)
        if held.get("transfer-encoding") == "chunked":
            rest, self.body = self.body, b""
            while rest:
                size, _, rest = rest.partition(b"\r\n")
                n = int(size, 16)
                self.body, rest = self.body + rest[:n], rest[n + 2:]
                if n == 0:
                    break

    def get(self, name):
        return [v for n, v in self.fields if n.lower() == name]


class Glue(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="pxg-glue-")
        cls.addClassCleanup(shutil.rmtree, cls.dir, True)
        cls.upstream = Upstream(f"{cls.dir}/up.sock", Answer)
        threading.Thread(target=cls.upstream.serve_forever, daemon=True).start()
        cls.addClassCleanup(cls.upstream.server_close)
        cls.addClassCleanup(cls.upstream.shutdown)
        os.mkdir(f"{cls.dir}/html")
        with open(f"{cls.dir}/html/file.txt", "wb") as f:
            f.write(BIG)
        cls.config(cls.conf())
        cls.nginx = subprocess.Popen([NGINX, "-p", cls.dir, "-c", f"{cls.dir}/nginx.conf", "-e", f"{cls.dir}/error.log"])
        cls.addClassCleanup(cls.stop)
        end = time.monotonic() + DEADLINE
        while not os.path.exists(f"{cls.dir}/nginx.pid"):  # Before it listens, there may be a socket that refuses.
            if cls.nginx.poll() is not None or time.monotonic() > end:
                raise RuntimeError("nginx did not start: " + open(f"{cls.dir}/error.log").read())
            time.sleep(0.01)

    @classmethod
    def stop(cls):
        cls.nginx.send_signal(signal.SIGTERM)
        try:
            cls.nginx.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            cls.nginx.kill()
            cls.nginx.wait()
            raise

    @classmethod
    def conf(cls, inside="", more=""):
        d = cls.dir
        return f"""
load_module {MODULE};
daemon off; user root; worker_processes 1; pid {d}/nginx.pid; error_log {d}/error.log info;
events {{ worker_connections 64; }}
http {{
  access_log {d}/access.log;
  client_body_temp_path {d}/body; proxy_temp_path {d}/proxy; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u;
  scgi_temp_path {d}/s;
  proxy_golang_filter one {{
    guest {d}/none.so;
    {inside}
  }}
  {more}
  server {{
    listen unix:{d}/n.sock;
    root {d}/html;
    proxy_golang one;
    sendfile on;
    location /file.txt {{ }}
    location /up {{ proxy_pass http://unix:{d}/up.sock; }}
    location /stream {{ proxy_pass http://unix:{d}/up.sock; proxy_request_buffering off; proxy_http_version 1.1; }}
    location /direct {{ proxy_pass http://unix:{d}/up.sock; proxy_buffering off; }}
    location /moved {{ error_page 502 = @other; proxy_pass http://unix:{d}/none.sock; }}
    location @other {{ proxy_pass http://unix:{d}/up.sock; }}
    location /plain {{ proxy_golang off; proxy_pass http://unix:{d}/up.sock; }}
  }}
}}
"""

    @classmethod
    def config(cls, text):
        with open(f"{cls.dir}/nginx.conf", "w") as f:
            f.write(text)

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(DEADLINE)
        s.connect(f"{self.dir}/n.sock")
        self.addCleanup(s.close)
        return s

    def ask(self, path, drive="", method="GET", fields=(), body=b""):
        s = self.connect()
        lines = [f"{method} {path} HTTP/1.1", "Host: example.org", "Connection: close", *fields]
        if drive:
            lines.append(f"X-Drive: {drive}")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        s.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        raw = b""
        while got := s.recv(65536):
            raw += got
        return Reply(raw)

    def log(self):
        with open(f"{self.dir}/error.log") as f:
            return f.read()

    def tearDown(self):
        bad = ("[alert]", "[emerg]", "exited on signal")
        self.assertEqual([line for line in self.log().splitlines() if any(b in line for b in bad)], [])


class Requests(Glue):
    def test_nothing_is_changed_without_a_wish(self):
        a, b = self.ask("/up/x?y=1"), self.ask("/plain")
        self.assertEqual((a.status, b.status), (200, 200))
        strip = lambda r: [f for f in json.loads(r.body)["fields"]]
        self.assertEqual(strip(a), strip(b))
        self.assertEqual(json.loads(a.body)["line"], "GET /up/x?y=1 HTTP/1.0")

    def test_request_fields(self):
        got = self.ask("/up/old?q=1", "edit", fields=[
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
        self.assertTrue(view.startswith(":method=GET|:scheme=http|:authority=example.org|:path=/up/old?q=1|"), view)
        self.assertIn("|x-remove=1|x-remove=2|x-at=first|x-at=second|cookie=a=1|cookie=b=2|", view)
        self.assertNotIn("|host=", view)

    def test_response_fields(self):
        got = self.ask("/up", "edit")
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
        view = self.ask("/file.txt", "edit").get("x-view-response")[0]
        self.assertTrue(view.startswith(":status=200|content-type=text/plain|content-length=1048576|last-modified="), view)
        self.assertIn("|etag=", view)

    def test_pending_at_request_headers(self):
        self.assertEqual(json.loads(self.ask("/up", "rh=20").body)["length"], 0)
        self.assertEqual(self.ask("/file.txt", "rh=20").body, BIG)

    def test_many_pending_on_one_worker(self):
        got = []
        threads = [threading.Thread(target=lambda: got.append(self.ask("/up", "rh=30 sh=10").status)) for _ in range(20)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(got, [200] * 20)

    def body(self, path, drive, fields=(), chunked=False):
        if chunked:
            s = self.connect()
            s.sendall(f"POST {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\nX-Drive: {drive}\r\n"
                      "Transfer-Encoding: chunked\r\n\r\n".encode())
            for at in range(0, len(BODY), 10000):
                part = BODY[at:at + 10000]
                s.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            s.sendall(b"0\r\n\r\n")
            raw = b""
            while got := s.recv(65536):
                raw += got
            got = Reply(raw)
        else:
            got = self.ask(path, drive, "POST", fields, BODY)
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
            said = json.loads(self.ask(path, "rb=20", "POST", (), b"abc").body)
            self.assertEqual(said["length"], 3)

    def test_reply(self):
        before = self.upstream.seen
        for drive in ("reply", "rh=20 reply"):
            got = self.ask("/up", drive)
            self.assertEqual((got.status, got.body), (403, b"denied\n"))
            self.assertEqual((got.get("x-reply"), got.get("content-length")), (["yes"], ["7"]))
        got = self.ask("/up", "reply", "POST", (), BODY)
        self.assertEqual(got.status, 403)
        self.assertEqual(self.ask("/up", "reply", "HEAD").body, b"")
        self.assertEqual(self.upstream.seen, before)

    def test_reset(self):
        self.assertEqual(self.ask("/up", "reset").line, "")

    def test_client_goes_while_pending(self):
        before = self.upstream.seen
        for _ in range(20):
            s = self.connect()
            s.sendall(b"GET /up HTTP/1.1\r\nHost: e\r\nX-Drive: rh=100\r\n\r\n")
            s.close()
        self.assertEqual(self.ask("/up", "rh=150").status, 200)  # Later than all of them.
        self.assertEqual(self.upstream.seen, before + 1)

    def test_internal_redirect_keeps_the_stream(self):
        got = self.ask("/moved", "edit rh=10")
        said = json.loads(got.body)
        self.assertEqual([v for n, v in said["fields"] if n == "x-add"], ["1", "2"])


class Responses(Glue):
    def test_body_passes(self):
        for path in ("/up/big", "/direct/big", "/file.txt"):
            for drive in ("", "sh=20", "sb=20", "sh=20 sb=20", "rh=10 sh=10 sb=10"):
                with self.subTest(path=path, drive=drive):
                    got = self.ask(path, drive)
                    self.assertEqual(got.status, 200)
                    self.assertEqual(len(got.body), len(BIG))
                    self.assertEqual(got.body, BIG)

    def test_head(self):
        for path in ("/up", "/file.txt"):
            for drive in ("", "sh=20", "sb=20"):
                with self.subTest(path=path, drive=drive):
                    got = self.ask(path, drive, "HEAD")
                    self.assertEqual((got.status, got.body), (200, b""))

    def test_not_modified(self):
        when = self.ask("/file.txt").get("last-modified")[0]
        got = self.ask("/file.txt", "sh=20", fields=[f"If-Modified-Since: {when}"])
        self.assertEqual((got.status, got.body), (304, b""))

    def test_keepalive_and_pipelining(self):
        s = self.connect()
        one = b"GET /up/%d HTTP/1.1\r\nHost: e\r\nX-Drive: rh=5 sh=5 sb=5\r\n\r\n"
        last = b"GET /up/9 HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"
        s.sendall(b"".join(one % i for i in range(9)) + last)
        raw = b""
        while got := s.recv(65536):
            raw += got
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
                path = f"{self.dir}/bad.conf"
                with open(path, "w") as f:
                    f.write(self.conf(inside))
                got = subprocess.run([NGINX, "-t", "-p", self.dir, "-c", path, "-e", "stderr"], capture_output=True,
                                     text=True, timeout=DEADLINE)
                self.assertNotEqual(got.returncode, 0)
                self.assertIn(expected, got.stderr)
                self.assertRegex(got.stderr, r"bad\.conf:\d+")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MODULE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
