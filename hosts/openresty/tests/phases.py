#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""resty.proxy_golang in every phase and way in which lua-nginx-module runs Lua, and what ends such Lua while a guest has it.

    PXG_NGINX_MODULE=MODULE.so tests/phases.py [unittest arguments]   see hosts/nginx/tests/harness.py for the environment
"""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import unittest

import common
from common import harness

HEAD = common.HEAD
# A stream of a test's own, in the phase where it stands.
OPEN = 'local pxg = require "resty.proxy_golang" local s = assert(pxg.filter("%s"%s)):stream() '

LOCATIONS = r"""
    # Feeds what it gets as it comes, and says what left.
    location /in/ {
      client_max_body_size 0;
      client_body_buffer_size 16k;
      content_by_lua_block {
        local pxg = require "resty.proxy_golang"
        local s = assert(pxg.filter(ngx.var.uri:sub(5))):stream()
        local o, err = s:request_headers({[":method"] = "POST", [":path"] = "/", [":scheme"] = "http", [":authority"] = "e"})
        local n = 0
        while o and o.action ~= "reply" and not o.last do
          o, err = s:read_request_body()
          n = n + 1
          if o and o.action ~= "reply" and o.body ~= "" then ngx.print(o.body) ngx.flush(true) end
        end
        ngx.shared.said:set("in", (o and o.action or err) .. " " .. tostring(o and o.last) .. " "
                                  .. tostring((select(2, s:read_request_body()))))
        if o and o.reply then return pxg.respond(o.reply) end
      }
    }
    location /slow {
      client_body_timeout 50ms;
      content_by_lua_block {
        %(open_headers)s
        s:request_headers(%(head)s)
        ngx.say((select(2, s:read_request_body())))
      }
    }
    location /patient {
      client_body_timeout 50ms;
      content_by_lua_block {
        local pxg = require "resty.proxy_golang"
        local s = assert(pxg.filter("patient")):stream()
        s:request_headers(%(head)s)
        local o, err
        repeat
          o, err = s:read_request_body()
          ngx.print(o and o.body or err)
        until not o or o.last
      }
    }
    # The thread that waits for the body is killed, and the request goes on.
    location /killed {
      content_by_lua_block {
        %(open_headers)s
        s:request_headers(%(head)s)
        local t = ngx.thread.spawn(function()
          s:read_request_body()
          s:read_request_body()
          ngx.log(ngx.ERR, "the killed thread went on")
        end)
        ngx.thread.kill(t)
        ngx.say("killed")
      }
    }
    location /read_before {
      content_by_lua_block {
        ngx.req.read_body()
        %(open_headers)s
        s:request_headers(%(head)s)
        ngx.say((select(2, s:read_request_body())))
      }
    }
    location /attrs/ {
      set $said "";
      access_by_lua_block { require("resty.proxy_golang").access("attrs") }
      header_filter_by_lua_block { require("resty.proxy_golang").header_filter() }
      body_filter_by_lua_block { require("resty.proxy_golang").body_filter() }
      log_by_lua_block { require("resty.proxy_golang").log() }
      proxy_set_header Host $http_host;
      proxy_pass http://unix:%(path)s/up.sock:/said;
    }
    location /exec {
      rewrite_by_lua_block {
        %(open_pend)s
        local o = s:request_headers(%(head)s)
        ngx.req.set_header("x-guest", o.headers["x-guest"])
        ngx.exec("/said")
      }
    }
    location /redirect {
      access_by_lua_block {
        %(open_pend)s
        local o = s:request_headers(%(head)s)
        ngx.redirect("/to/" .. o.headers["x-guest"])
      }
      content_by_lua_block { ngx.say("content") }
    }
    location /said { content_by_lua_block { ngx.say(ngx.var.http_x_guest or "nothing") } }
    location /captures {
      content_by_lua_block {
        %(open_pend)s
        local a, b = ngx.location.capture_multi{{"/part"}, {"/part"}}
        local o = s:request_headers(%(head)s)
        ngx.say(a.body, b.body, o.headers["x-guest"])
      }
    }
    location /part {
      rewrite_by_lua_block {
        %(open_pend)s
        ngx.ctx.o = s:request_headers(%(head)s)
      }
      content_by_lua_block { ngx.print(ngx.ctx.o.headers["x-guest"], " ") }
    }
    location /balancer/ {
      set $word "";
      access_by_lua_block { ngx.var.word = ngx.var.uri:sub(11) }
      proxy_set_header x-word $word;
      proxy_pass http://balanced;
    }
    location /on_abort {
      access_by_lua_block {
        %(open_hang)s
        assert(ngx.on_abort(function()
          ngx.shared.said:set("on_abort", "called")
          ngx.exit(499)
        end))
        s:request_headers(%(head)s)
        ngx.log(ngx.ERR, "the pending thread went on")
      }
      content_by_lua_block { ngx.say("content") }
    }
    location /exit_elsewhere {
      access_by_lua_block {
        %(open_hang)s
        ngx.thread.spawn(function() ngx.exit(403) end)
        s:request_headers(%(head)s)
        ngx.log(ngx.ERR, "the pending thread went on")
      }
      content_by_lua_block { ngx.say("content") }
    }
    location /proxy/ {
      content_by_lua_block { require("proxy").serve({ "through" }, "unix:%(path)s/echo.sock") }
      log_by_lua_block { require("proxy").log() }
    }
"""

MORE = r"""
    lua_ssl_verify_depth 1;
    upstream balanced {
      server 0.0.0.1;
      balancer_by_lua_block {
        local pxg = require "resty.proxy_golang"
        local s = assert(pxg.filter(ngx.var.word)):stream()
        local o, err = s:request_headers(%(head)s)
        ngx.shared.said:set("balancer", o and o.headers["x-guest"] or err)
        assert(require("ngx.balancer").set_current_peer("unix:%(path)s/up.sock"))
      }
    }
    ssl_certificate %(path)s/cert.pem;
    ssl_certificate_key %(path)s/key.pem;
    server {
      listen unix:%(path)s/tls-sleep.sock ssl;
      ssl_certificate_by_lua_block { ngx.sleep(0.001) }
      location / { return 200 "tls"; }
    }
    server {
      listen unix:%(path)s/tls-headers.sock ssl;
      ssl_certificate_by_lua_block {
        %(open_headers)s
        local o, err = s:request_headers(%(head)s)
        ngx.shared.said:set("tls", o and o.headers["x-guest"] or err)
      }
      location / { return 200 "tls"; }
    }
    server {
      listen unix:%(path)s/tls-pend.sock ssl;
      ssl_certificate_by_lua_block {
        %(open_pend)s
        local o, err = s:request_headers(%(head)s)
        ngx.shared.said:set("tls", o and o.headers["x-guest"] or err)
      }
      location / { return 200 "tls"; }
    }
"""

INIT = r"""
    local pxg = require "resty.proxy_golang"
    local f = assert(pxg.load{guest = "%(guest)s", filter = "lua-test", name = "early", config = "headers"})
    local o, err = f:request_headers(%(head)s)
    ngx.shared.said:set("init", o and o.headers["x-guest"] or err)
    f = assert(pxg.load{guest = "%(guest)s", filter = "lua-test", name = "early-hang", config = "hang"})
    o, err = f:request_headers(%(head)s)
    ngx.shared.said:set("init-hang", o and "answered" or err)
    require("proxy").load{ { name = "through", guest = "%(guest)s", filter = "lua-test", config = "stream" } }
"""


class Phases(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.build = None
        if not os.environ.get("PXG_TEST_BUILD"):
            cls.build = tempfile.TemporaryDirectory(prefix="pxg-guests-")
            os.environ["PXG_TEST_BUILD"] = cls.build.name
        cls.guest = common.build(f"{common.HERE}/guest.c", "lua-guest")
        cls.folder = harness.folder()
        cls.path = cls.folder.__enter__()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{cls.path}/key.pem", "-out",
                        f"{cls.path}/cert.pem", "-subj", "/CN=e", "-days", "2"], check=True, stderr=subprocess.DEVNULL)
        cls.upstream = harness.Upstream(f"{cls.path}/up.sock", cls.answer)
        cls.upstream.__enter__()
        cls.echo = harness.Upstream(f"{cls.path}/echo.sock", cls.echoes)
        cls.echo.__enter__()
        values = {"path": cls.path, "head": HEAD, "guest": cls.guest}
        for word in ("headers", "pend", "hang"):
            values[f"open_{word}"] = OPEN % (word, "")
        cls.conf = common.conf(cls.path, cls.guest, locations=LOCATIONS % values, more=MORE % values, init=INIT % values)
        cls.nginx = harness.Nginx(cls.path, cls.conf, f"{cls.path}/n.sock")
        try:
            cls.nginx.__enter__()
        except BaseException:
            cls.tearDownClass()
            raise
        cls.lua = common.Console(cls.path)

    @classmethod
    def tearDownClass(cls):
        cls.nginx.__exit__()
        cls.upstream.__exit__()
        cls.echo.__exit__()
        cls.folder.__exit__(None, None, None)
        if cls.build:
            cls.build.cleanup()
            del os.environ["PXG_TEST_BUILD"]

    def tearDown(self):
        self.none_left()
        self.no_alarms(self.nginx)

    def no_alarms(self, nginx, but="$^"):
        found = [line for line in nginx.log().splitlines()
                 if re.search(r"exited on signal|\[alert\]|\[emerg\]|went on", line) and not re.search(but, line)]
        self.assertEqual(found[:5], [])

    @staticmethod
    def answer(request, connection):
        body = json.dumps({"path": request.path, "fields": request.fields}).encode()
        connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return True

    @staticmethod
    def echoes(request, connection):
        said = json.dumps({"head": request.raw.decode(), "body": request.body.decode()}).encode()
        connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
        return False

    def none_left(self):
        harness.wait_for("no stream is left", lambda: self.lua.run("return pxg.streams()") == ["0"])

    def said(self, key):
        """What Lua left under this key, once it has."""
        got = []

        def there():
            got[:] = self.lua.run(f'local v = ngx.shared.said:get("{key}") ngx.shared.said:delete("{key}") return v')
            return got != ["nil"]

        harness.wait_for(f"{key} is said", there)
        return "\n".join(got)

    def load(self, config, pend_limit=20):
        """Lua that loads the guest with this configuration as f."""
        name = config.replace("@", "-")
        return f"""local f = assert(pxg.load{{guest = "{self.guest}", filter = "lua-test", name = "{name}",
                                              config = "{config}", pend_limit = {pend_limit}}}) """

    # ---- Attributes --------------------------------------------------------------------------------------------------

    def test_attributes_of_the_request(self):
        seen = len(self.nginx.log())
        got = self.lua.ask("/attrs/a/../%7Eb?q=1")
        asked = dict(got.json()["fields"])["x-attrs"]
        answered = got.get("x-attrs")[0]
        self.assertRegex(asked, r"^request\.id=[0-9a-f]{32};request\.protocol=HTTP/1\.1;path\.raw=/attrs/a/\.\./%7Eb\?q=1;"
                                r"path\.normalized=/attrs/~b\?q=1;source\.address=unix:;connection\.requests=1;"
                                r"duration_ns=\d+;route\.name=/attrs/;$")
        self.assertEqual(asked.split(";")[:3], answered.split(";")[:3])
        self.assertIn("response.code_details=via_upstream;", answered)
        logged = harness.wait_for("LOG is in the log",
                                  lambda: re.search(r"request\.id=\S*response\.code=(\d+)", self.nginx.log()[seen:]))
        self.assertEqual(logged[1], "200")
        # The body's bytes as they were sent.
        self.assertIn(f"response.body_bytes={len(got.body)};", logged[0])

    def test_bytes_of_a_response_that_nobody_has_sent(self):
        seen = len(self.nginx.log())
        self.lua.run("""
            local s = pxg.filter("attrs", {attributes = true}):stream()
            s:request_headers(head(), true)
            s:response_headers{[":status"] = 200}
            s:response_body("12345", true)
            return s:finish()""")
        self.assertIn("response.body_bytes=5;", self.nginx.log()[seen:])

    def test_an_absolute_target(self):
        with harness.Client(self.lua.socket) as c:
            c.send(b"GET http://one.test:81/attrs/x HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n")
            self.assertIn(["Host", "one.test:81"], c.answer().json()["fields"])

    def test_attributes_are_absent_where_a_stream_may_be_about_anything(self):
        self.assertEqual(self.lua.run('return pxg.filter("attrs"):request_headers(head()).headers["x-attrs"]'), [""])
        _, err = self.lua.run('return pxg.filter("must-attr")')
        self.assertIn("required attribute request.id", err)
        self.assertEqual(self.lua.run('return pxg.filter("must-attr", {attributes = true}) ~= nil'), ["true"])

    def test_attributes_in_each_phase(self):
        code = 'return pxg.filter("attrs", {attributes = true}):request_headers(head()).headers["x-attrs"]'
        for phase in ("rewrite", "access", "content", "header", "body", "log", "set"):
            with self.subTest(phase=phase):
                self.assertRegex(self.lua.run(code, phase)[0], rf"path\.raw=/{phase}\?c=.*route\.name=/{phase};")
        # A timer has no request of a client.
        self.assertEqual(self.lua.run(code, "timer"), [""])

    # ---- Request bodies as they come ---------------------------------------------------------------------------------

    def test_chunks_pass_as_they_come(self):
        """Each piece is answered before the next one is sent."""
        for word, expected in (("stream", (b"bbc", b"xyb")), ("headers", (b"aac", b"xya"))):
            for fields, frame in ((("Transfer-Encoding: chunked",), lambda b: b"%x\r\n%s\r\n" % (len(b), b)),
                                  (("Content-Length: 6",), lambda b: b)):
                with self.subTest(word=word, fields=fields), harness.Client(self.lua.socket) as c:
                    c.send(harness.request("POST", f"/in/{word}", fields))
                    c.send(frame(b"aac"))
                    self.assertIsNotNone(c.until(b"\r\n\r\n"))
                    self.assertEqual((c.until(b"\r\n"), c.exactly(5)), (b"3", expected[0] + b"\r\n"))
                    c.send(frame(b"xya"))
                    if "chunked" in fields[0]:
                        c.send(b"0\r\n\r\n")
                    self.assertEqual(c.chunks(), (expected[1], "chunked"))
                    self.assertEqual(self.said("in"), "continue true no body to be read: it has been read before, or the "
                                                      "stream is of another request")
                    # The connection goes on.
                    c.send(harness.request("GET", "/said"))
                    self.assertEqual(c.answer().body, b"nothing\n")

    def test_a_guest_that_pends_on_every_piece(self):
        self.lua.run(self.load("pend@2") + "return 1")
        body = os.urandom(300_000).hex().encode()
        with harness.Client(self.lua.socket) as c:
            c.send_aside(harness.request("POST", "/in/pend-2", body=body))
            self.assertTrue(c.answer().body == body)
        self.said("in")

    def test_big_bodies(self):
        body = b"0123456789abcdef" * (256 << 10)
        with harness.Client(self.lua.socket) as c:
            c.send_aside(harness.request("POST", "/in/stream", ("Transfer-Encoding: chunked",))
                         + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in
                                    (body[i:i + 10007] for i in range(0, len(body), 10007))) + b"0\r\n\r\n")
            self.assertTrue(c.answer().body == body.replace(b"a", b"b"))
        self.said("in")

    def test_http2(self):
        with tempfile.NamedTemporaryFile() as f:
            body = b"0123456789abcdef" * 20000
            f.write(body)
            f.flush()
            got = subprocess.run(["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", f"{self.path}/h2.sock",
                                  "-H", "Content-Type: x/y", "--data-binary", f"@{f.name}", "http://e/in/stream"],
                                 capture_output=True, timeout=harness.DEADLINE)
        self.assertEqual((got.stderr, got.stdout == body.replace(b"a", b"b")), (b"", True))
        self.assertRegex(self.said("in"), "^continue true ")

    def test_continue_is_answered_once_the_body_is_read(self):
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/in/stream", ("Content-Length: 3", "Expect: 100-continue")))
            self.assertEqual(c.answer().status, 100)
            c.send(b"abc")
            self.assertEqual(c.answer().body, b"bbc")
        self.said("in")
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/in/deny", ("Content-Length: 3", "Expect: 100-continue")))
            self.assertEqual(c.answer().status, 403)
        self.said("in")

    def test_no_body(self):
        self.assertEqual(self.lua.ask("/in/stream").body, b"")
        self.assertRegex(self.said("in"), "^continue true ")

    def test_bodies_that_are_not_to_be_had(self):
        self.assertRegex(self.lua.ask("/read_before", method="POST", body=b"x").body, b"^no body to be read")
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/in/stream", ("Transfer-Encoding: chunked",)) + b"nonsense\r\n")
            c.rest()
        self.assertRegex(self.said("in"), "^a bad request: 400 nil ")
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/slow", ("Content-Length: 3",)))
            self.assertEqual(c.answer().body, b"timeout\n")
        # One that goes away.
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/in/stream", ("Content-Length: 300",)) + b"abc")
            self.assertIsNotNone(c.until(b"bbc"))
        self.assertRegex(self.said("in"), "^client aborted nil ")

    def test_the_limit_for_a_client_is_none_for_a_guest(self):
        self.lua.run(f"""assert(pxg.load{{guest = "{self.guest}", filter = "lua-test", name = "patient", config = "never@2",
                                           failure_mode = "open", pend_limit = 0.3}}) return 1""")
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/patient", ("Transfer-Encoding: chunked",)) + b"3\r\nabc\r\n")
            harness.wait_for("it pends", lambda: self.lua.run("return pxg.streams()") == ["1"])
            c.send(b"3\r\ndef\r\n0\r\n\r\n")
            self.assertEqual(c.answer().body, b"abcdef")

    def test_clients_that_go_away_while_a_guest_has_a_piece(self):
        self.lua.run(self.load("hang@2", 600) + "return 1")
        for _ in range(10):
            with harness.Client(self.lua.socket) as c:
                c.send(harness.request("POST", "/in/hang-2", ("Content-Length: 300",)))
                harness.wait_for("it waits", lambda: self.lua.run("return pxg.streams()") == ["1"])
                c.send(b"abc")
            self.none_left()

    def test_a_limit_while_the_client_is_waited_for(self):
        """The guest holds a piece, and has no more of it."""
        self.lua.run(f"""assert(pxg.load{{guest = "{self.guest}", filter = "lua-test", name = "holds", config = "whole",
                                           hold_limit = 0.05}}) return 1""")
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("POST", "/in/holds", ("Content-Length: 300",)) + b"abc")
            self.assertEqual(c.answer().status, 500)
        self.assertRegex(self.said("in"), "^reply ")

    def test_a_thread_that_waits_for_the_body_is_killed(self):
        for _ in range(20):
            with harness.Client(self.lua.socket) as c:
                c.send(harness.request("POST", "/killed", ("Content-Length: 300",)) + b"abc")
                self.assertEqual(c.answer().body, b"killed\n")
                with_rest = b"x" * 297
                c.send_aside(with_rest)

    def test_the_example_proxy(self):
        body = b"abcd" * 100_000
        got = self.lua.ask("/proxy/x", method="POST", body=body)
        # The guest changes the response, too.
        self.assertTrue(got.json()["body"].encode() == body.replace(b"a", b"b"))
        self.assertIn("POST /proxy/x HTTP/1.1\r\n", got.json()["hebd"])

    # ---- A guest's answers in each phase of Lua ----------------------------------------------------------------------

    def test_failures_of_each_event_in_each_phase(self):
        code = """
            local s = f:stream()
            local o, err = s:request_headers(head())
            if o and o.action ~= "reply" then o, err = s:request_body("x", true) end
            if o and o.action ~= "reply" then o, err = s:response_headers{[":status"] = 200} end
            if o and o.action ~= "reply" then o, err = s:response_body("y", true) end
            s:finish()
            return o and o.action or err, o and o.reply and o.reply.status, pxg.streams()"""
        for phase in ("rewrite", "access", "content", "timer", "header", "body", "log", "set"):
            for word, expected in (("error", ["reply", "500"]), ("reset", ["reset", "nil"]), ("deny", ["reply", "403"])):
                for at in (1, 2, 4, 5):
                    with self.subTest(phase=phase, word=word, at=at):
                        got = self.lua.run(self.load(f"{word}@{at}") + code, phase)
                        # A response's headers have left before its body: it can only be cut.
                        self.assertEqual(got, (["reset", "nil"] if at == 5 else expected) + ["0"])

    def test_deadline_of_each_event(self):
        """Also what was fed to others of a chain before, and has not been taken."""
        code = """
            local s = pxg.stream{pxg.filter("headers"), f, pxg.filter("stream")}
            local o, err = s:request_headers(head())
            if o and o.action ~= "reply" then o, err = s:request_body("x", true) end
            if o and o.action ~= "reply" then o, err = s:response_headers{[":status"] = 200} end
            if o and o.action ~= "reply" then o, err = s:response_body("y", true) end
            s:finish()
            return o and o.action or err, tostring(o and o.reply and o.reply.details)"""
        for phase in ("access", "timer"):
            for at in (1, 2, 4, 5):
                with self.subTest(phase=phase, at=at):
                    self.assertEqual(self.lua.run(self.load(f"never@{at}", 0.05) + code, phase),
                                     ["reset", "nil"] if at == 5 else ["reply", f"never-{at}.deadline"])

    def test_bytes_outlive_their_strings(self):
        """What a guest has while it pends, or waits for more, is the module's copy."""
        got = self.lua.run(self.load("pend@2") + """
            local s = f:stream()
            s:request_headers(head())
            local sums, same = {}, 0
            for i = 1, 50 do
                local want = ("%08d"):format(i):rep(4096)
                local t = ngx.thread.spawn(function() return s:request_body(("%08d"):format(i):rep(4096)) end)
                for k = 1, 20 do sums[k] = ("%08d"):format(k + i * 1000):rep(4096) end
                collectgarbage()
                local _, o = ngx.thread.wait(t)
                same = same + (o.body == want and 1 or 0)
            end
            s = pxg.filter("whole"):stream()
            s:request_headers(head())
            local want = {}
            for i = 1, 50 do
                s:request_body(("%08d"):format(i):rep(2048))
                want[i] = i
            end
            collectgarbage()
            local other = {}
            for i = 1, 100 do other[i] = ("%08d"):format(i * 1000):rep(2048) end
            for i = 1, 50 do want[i] = ("%08d"):format(i):rep(2048) end
            return same, s:request_body(nil, true).body == table.concat(want) .. "\\n" """)
        self.assertEqual(got, ["50", "true"])

    def test_two_guests_in_one_handler(self):
        go = common.go_bundle()
        got = self.lua.run(self.load("pend") + f"""
            local g = assert(pxg.load{{guest = "{go}", filter = "trace-id"}})
            local s = pxg.stream{{f, g, f}}
            local o = assert(s:request_headers(head(), true))
            local t = g:stream()
            local p = assert(t:request_headers(head(), true))
            t:finish() s:finish()
            return #o.headers["x-trace-id"], o.headers["x-guest"][2], #p.headers["x-trace-id"], tostring(p.headers["x-guest"])""")
        self.assertEqual(got, ["32", "thread", "32", "nil"])

    def test_panics(self):
        """Of a guest in Go, in its method and in a goroutine; the next stream is served."""
        go = common.go_bundle()
        code = f"""
            local said = {{}}
            for _, fault in ipairs{{"panic", "nil", "async-panic", "async-goexit", "zero-action", "async-nothing"}} do
                local f, err = pxg.load{{guest = "{go}", filter = "faulty", name = fault, config = '{{"fault": "' .. fault .. '"}}'}}
                local o
                if f then o, err = f:request_headers(head()) end
                said[#said + 1] = fault .. " " .. (o and o.action .. " " .. tostring(o.reply and o.reply.details) or err)
            end
            return table.concat(said, ", "), pxg.streams()"""
        for phase in ("rewrite", "access", "content", "timer"):
            with self.subTest(phase=phase):
                self.assertEqual(self.lua.run(code, phase), [
                    "panic reply panic.panic, nil reply nil.panic, async-panic reply async-panic.panic, async-goexit reply "
                    "async-goexit.error, zero-action reply zero-action.error, async-nothing continue nil", "0"])

    # ---- Other phases of nginx ---------------------------------------------------------------------------------------

    def test_init_worker(self):
        self.assertEqual(self.said("init"), "sync")
        self.assertRegex(self.said("init-hang"), "cannot wait|init_worker")

    def test_balancer(self):
        self.assertEqual(self.lua.ask("/balancer/headers").status, 200)
        self.assertEqual(self.said("balancer"), "sync")
        self.assertEqual(self.lua.ask("/balancer/hang").status, 200)
        self.assertRegex(self.said("balancer"), "PENDING in balancer_by_lua.*cannot wait")

    def ask_by_tls(self, name):
        context = ssl.create_default_context(cafile=f"{self.path}/cert.pem")
        context.check_hostname = False
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(harness.DEADLINE)
            plain.connect(f"{self.path}/{name}.sock")
            with context.wrap_socket(plain) as tls:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n")
                self.assertIn(b"200 OK", tls.recv(4096))

    def test_ssl_certificate(self):
        self.ask_by_tls("tls-headers")
        self.assertEqual(self.said("tls"), "sync")
        try:
            self.ask_by_tls("tls-sleep")
        except ssl.SSLEOFError:
            self.skipTest("this nginx cannot wait in ssl_certificate_by_lua*: it lacks OpenResty's ssl_cert_cb_yield patch")
        for _ in range(3):
            self.ask_by_tls("tls-pend")
            self.assertEqual(self.said("tls"), "thread")

    def test_exec_and_redirect_behind_an_answer(self):
        self.assertEqual(self.lua.ask("/exec").body, b"thread\n")
        got = self.lua.ask("/redirect")
        self.assertEqual((got.status, got.get("location")), (302, ["/to/thread"]))

    def test_subrequests(self):
        self.assertEqual(self.lua.ask("/captures").body, b"thread thread thread\n")

    # ---- What ends Lua while a guest has it --------------------------------------------------------------------------

    def test_wait_for_any_of_two_threads(self):
        got = self.lua.run("""
            local function ask(word) return function()
                local s = pxg.filter(word):stream()
                local o = s:request_headers(head())
                s:finish()
                return o.headers["x-guest"]
            end end
            local hang, pend = ngx.thread.spawn(ask("hang")), ngx.thread.spawn(ask("pend"))
            local ok, said = ngx.thread.wait(hang, pend)
            local killed = ngx.thread.kill(hang)
            return ok, said, killed, coroutine.status(hang), pxg.streams()""")
        self.assertEqual(got, ["true", "thread", "1", "dead", "1"])

    def test_coroutines(self):
        got = self.lua.run("""
            local said = {}
            local step = coroutine.wrap(function()
                for i = 1, 3 do
                    local s = pxg.filter("pend"):stream()
                    coroutine.yield(s:request_headers(head()).headers["x-guest"])
                    s:finish()
                end
            end)
            for i = 1, 3 do said[i] = step() end
            step()
            local left = coroutine.create(function() pxg.filter("headers"):stream():request_headers(head())
                                                     coroutine.yield() end)
            coroutine.resume(left)
            return said[1], said[2], said[3], pxg.streams()""")
        self.assertEqual(got, ["thread", "thread", "thread", "1"])

    def test_on_abort(self):
        with harness.Client(self.lua.socket) as c:
            c.send(harness.request("GET", "/on_abort"))
            harness.wait_for("it pends", lambda: self.lua.run("return pxg.streams()") == ["1"])
        self.assertEqual(self.said("on_abort"), "called")

    def test_exit_in_another_thread(self):
        for _ in range(20):
            self.assertEqual(self.lua.ask("/exit_elsewhere").status, 403)

    def test_quit_while_pending(self):
        """A graceful end waits for the guest."""
        with harness.folder() as path:
            with harness.Nginx(path, common.conf(path, self.guest), f"{path}/n.sock") as nginx:
                lua = common.Console(path)
                with harness.Client(lua.socket) as c:
                    code = 'return pxg.filter("never"):request_headers(head()).reply.details'
                    c.send(harness.request("GET", lua.url("content", code)))
                    harness.wait_for("it pends", lambda: lua.run("return pxg.streams()") == ["1"])
                    nginx.signal(signal.SIGQUIT)
                    self.assertEqual(c.answer().body, b"never.deadline\n")
                nginx.ended()
                self.no_alarms(nginx)

    def test_without_a_code_cache(self):
        """Every request has a Lua of its own, with its own semaphores, which end with it."""
        with harness.folder() as path:
            conf = common.conf(path, self.guest, more="lua_code_cache off;")
            with harness.Nginx(path, conf, f"{path}/n.sock") as nginx:
                lua = common.Console(path)
                for _ in range(10):
                    self.assertEqual(lua.run('return pxg.filter("pend"):request_headers(head()).headers["x-guest"]'),
                                     ["thread"])
                    # One that is left while it pends.
                    got = lua.run("""
                        ngx.thread.spawn(function() pxg.filter("hang"):stream():request_headers(head()) end)
                        return pxg.streams()""", "rewrite")
                    self.assertEqual(got, ["1"])
                    with harness.Client(lua.socket) as c:
                        c.send(harness.request("GET", lua.url("content", 'return pxg.filter("hang"):request_headers(head())')))
                        harness.wait_for("it pends", lambda: lua.run("return pxg.streams()") == ["1"])
                    harness.wait_for("it ended", lambda: lua.run("return pxg.streams()") == ["0"])
                nginx.quit()
                self.no_alarms(nginx, but="lua_code_cache is off")


if __name__ == "__main__":
    unittest.main()
