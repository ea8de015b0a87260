#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What must not become a way past the proxy: guests that change what frames or routes a message, clients that send what
nginx and an upstream would read differently, and endings that a guest's suspension meets half way.

    PXG_NGINX_MODULE=MODULE.so tests/hostile.py [unittest arguments]      Environment: see harness.py.
"""

import contextlib
import json
import tempfile
import time
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
    "authority-up": "request set :authority ..\nview",
    "authority-dot": "request set :authority files.test.:80",
    "mark": "request set x-mark 1",
    "remove": "request delete x-gone",
    "view": "view",
    "resize": "resize",
    "to-alias": "request set :path /files/file.txt\nrecompute",
    "to-proxy": "request set :path /proxied/x\nrecompute",
}


def conf(path, features, words):
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
    location /up/ {{ proxy_golang authority-up view; root {path}/html/$host; }}
    location /dot/ {{ proxy_golang authority-dot; alias {path}/html/$host/; }}
    location /hosts/ {{ proxy_golang mark remove view; proxy_pass http://app; }}
    location /a/long/way/alias/ {{ proxy_golang to-alias; proxy_pass http://app; }}
    location /a/long/way/proxy/ {{ proxy_golang to-proxy; proxy_pass http://app; }}
    location /files/ {{ alias {path}/html/; }}
    location /proxied/ {{ proxy_pass http://app/replaced/; }}
    location /held/ {{
      proxy_golang whole; client_max_body_size 64k; proxy_pass http://app;
      error_page 400 413 = /refused.txt;
    }}
    location = /refused.txt {{ }}
    location /held/named/ {{
      proxy_golang whole; client_max_body_size 64k; proxy_pass http://app;
      error_page 400 413 = @refused;
    }}
    location @refused {{ proxy_golang view; return 200 "refused"; }}
  }}
}}
"""


def echo(said, connection):
    body = json.dumps({"target": said.path, "method": said.method, "fields": said.fields}).encode()
    connection.say(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%s"
                   % (len(body), b"" if said.method == "HEAD" else body))
    return True


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kept = contextlib.ExitStack()
        cls.addClassCleanup(cls.kept.close)
        cls.path = cls.kept.enter_context(folder())
        build = cls.kept.enter_context(tempfile.TemporaryDirectory(prefix="pxg-hostile-"))
        features = harness.build_c(f"{harness.HERE}/guests/features.c", f"{build}/features.so")
        words = harness.build_c(f"{harness.HERE}/guest.c", f"{build}/guest.so")
        cls.at = f"{cls.path}/n.sock"
        for name, text in (("file.txt", "a file\n"), ("refused.txt", "refused\n"), ("files.test", None)):
            if text is not None:
                with open(f"{cls.path}/html/{name}", "w") as f:
                    f.write(text)
        cls.up = cls.kept.enter_context(Upstream(f"{cls.path}/up.sock", echo))
        cls.nginx = cls.kept.enter_context(Nginx(cls.path, conf(cls.path, features, words), cls.at))

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


if __name__ == "__main__":
    unittest.main()
