# SPDX-License-Identifier: Apache-2.0
"""Tests that ask one nginx, whose upstream answers with what it was sent: as JSON, with some fields that guests know. Below
/big it answers a megabyte whose bytes tell their place."""

import hashlib
import json

import harness

BIG = b"".join(b"%08x" % i for i in range(1 << 17))
BODY = b"".join(b"%07x\n" % i for i in range(300 * 128))


def answer(request, connection):
    said = json.dumps({"line": request.raw.partition(b"\r\n")[0].decode("latin1"),
                       "fields": [[n.lower(), v] for n, v in request.fields], "length": len(request.body),
                       "sha": hashlib.sha256(request.body).hexdigest()}).encode()
    if "/big" in request.path:
        said = BIG
    connection.say(("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(said)}\r\nLast-Modified: Mon, 28 Sep 1970 06:00:00 GMT\r\n"
                    "Cache-Control: a\r\nCache-Control: b\r\nX-Remove: 1\r\nX-At: gone\r\nX-At: old\r\n"
                    "Connection: close\r\n\r\n").encode() + (said if request.method != "HEAD" else b""))
    return False


class Echo:
    """`conf` is the subclass's; its server listens at {dir}/n.sock, the upstream at {dir}/up.sock."""

    @classmethod
    def setUpClass(cls):
        cls.dir = cls.enterClassContext(harness.folder())
        cls.upstream = cls.enterClassContext(harness.Upstream(f"{cls.dir}/up.sock", answer))
        with open(f"{cls.dir}/html/file.txt", "wb") as f:
            f.write(BIG)
        cls.nginx = cls.enterClassContext(harness.Nginx(cls.dir, cls.conf(), f"{cls.dir}/n.sock"))

    @classmethod
    def configuration(cls, http, server):
        return harness.head(cls.dir, f"load_module {harness.MODULE}; user root;") + f"""
events {{ worker_connections 64; }}
http {{
  {harness.temp_paths(cls.dir)}
  access_log off;
{http}
  server {{
    listen unix:{cls.dir}/n.sock;
    root {cls.dir}/html;
    sendfile on;
{server}
  }}
}}
"""

    def connect(self):
        c = harness.Client(f"{self.dir}/n.sock")
        self.addCleanup(c.socket.close)
        return c

    def ask(self, path, method="GET", fields=(), body=None):
        """The answer; an empty one if the connection was closed."""
        got = harness.ask(f"{self.dir}/n.sock", path, method, fields, body)
        return got or harness.Answer(b"", b"")

    def refused(self, conf, expected):
        """nginx -t does not take it, and says why and where."""
        with harness.folder() as path:
            ok, said = harness.Nginx(path, conf.replace(self.dir, path)).test()
        self.assertFalse(ok, said)
        self.assertIn(expected, said)
        self.assertRegex(said, r"nginx\.conf:\d+")

    def tearDown(self):
        bad = ("[alert]", "[emerg]", "exited on signal")
        self.assertEqual([line for line in self.nginx.log().splitlines() if any(b in line for b in bad)], [])
