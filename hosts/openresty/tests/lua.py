#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""resty.proxy_golang in a real nginx, with guests in C.

    PXG_NGINX_MODULE=MODULE.so tests/lua.py [unittest arguments]      see hosts/nginx/tests/harness.py for the environment
"""

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import tempfile
import threading
import unittest

import common
from common import harness

# A stream put through all phases; what came of each step.
ALL = """
local f = assert(pxg.filter("{name}"{opts}))
local s = f:stream()
local said = {{}}
local function note(o, err)
    said[#said + 1] = err or (o.action .. " " .. tostring(o.headers and o.headers["x-guest"]) .. " "
                              .. tostring(o.body) .. (o.last and " last" or ""))
end
note(s:request_headers(head{{["x-a"] = {{"1", "2"}}}}))
note(s:request_body("hello ", false))
note(s:request_body("again", true))
note(s:response_headers{{[":status"] = 200, ["content-length"] = 3}})
note(s:response_body("bye", true))
said[#said + 1] = tostring(s:finish())
said[#said + 1] = pxg.streams()
return unpack(said)
"""

YIELD = ("rewrite", "access", "content", "timer")
NO_YIELD = ("header", "body", "log", "set")


def steps(word, last="0"):
    return [f"continue {word} ", "continue nil hello ", "continue nil again last", f"continue {word} ",
            "continue nil bye last", "true", last]


class Lua(unittest.TestCase):
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
        cls.upstream = harness.Upstream(f"{cls.path}/up.sock", cls.answer)
        cls.upstream.__enter__()
        cls.nginx = harness.Nginx(cls.path, common.conf(cls.path, cls.guest, locations=cls.locations()),
                                  f"{cls.path}/n.sock")
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
        cls.folder.__exit__(None, None, None)
        if cls.build:
            cls.build.cleanup()
            del os.environ["PXG_TEST_BUILD"]

    @classmethod
    def locations(cls):
        def place(word):
            return f"""
    location /via/{word} {{
      access_by_lua_block {{ require("resty.proxy_golang").access("{word}") }}
      header_filter_by_lua_block {{ require("resty.proxy_golang").header_filter() }}
      body_filter_by_lua_block {{ require("resty.proxy_golang").body_filter() }}
      log_by_lua_block {{ require("resty.proxy_golang").log() }}
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_pass http://unix:{cls.path}/up.sock;
    }}
    location /ends/{word} {{
      access_by_lua_block {{
        local pxg = require "resty.proxy_golang"
        local s = assert(pxg.filter("{word}")):stream()
        ngx.thread.spawn(function()
          s:request_headers{{[":method"]="GET", [":path"]="/", [":scheme"]="http", [":authority"]="e"}}
          ngx.log(ngx.ERR, "the pending thread went on")
        end)
        ngx.exit(204)
      }}
      content_by_lua_block {{ ngx.say("content") }}
    }}"""
        return "".join(place(w) for w in ("headers", "pend", "whole", "stream", "path", "deny", "late", "error", "reset",
                                          "never", "hang"))

    @staticmethod
    def answer(request, connection):
        said = [f"{request.method} {request.path}"] + [f"{n.lower()}: {v}" for n, v in request.fields]
        body = "\n".join(said).encode() + b"\n\n" + request.body
        connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/x-said\r\nX-Up: 1\r\nX-Up: 2\r\n\r\n"
                       % len(body) + (b"" if request.method == "HEAD" else body))
        return True

    def counts(self):
        said = self.lua.run('return pxg.filter("counts"):request_headers(head()).reply.body')[0].split()
        return {said[i]: int(said[i + 1]) for i in range(0, len(said), 2)}

    def none_left(self):
        harness.wait_for("no stream is left", lambda: self.lua.run("return pxg.streams()") == ["0"])

    # ---- Phases ------------------------------------------------------------------------------------------------------

    def test_synchronous_guest_in_all_phases(self):
        for phase in YIELD + NO_YIELD:
            with self.subTest(phase=phase):
                self.assertEqual(self.lua.run(ALL.format(name="headers", opts=""), phase), steps("sync"))

    def test_pending_guest_where_lua_may_wait(self):
        for phase in YIELD:
            with self.subTest(phase=phase):
                self.assertEqual(self.lua.run(ALL.format(name="pend", opts=""), phase), steps("thread"))

    def test_pending_guest_is_told_to_answer_at_once(self):
        for phase in YIELD + NO_YIELD:
            with self.subTest(phase=phase):
                self.assertEqual(self.lua.run(ALL.format(name="pend", opts=", {sync = true}"), phase), steps("sync"))

    def test_pending_where_lua_cannot_wait(self):
        code = """
            local s = assert(pxg.filter("hang")):stream()
            local o, err = s:request_headers(head())
            return o, err, (select(2, s:request_body("x")))"""
        for phase in NO_YIELD:
            with self.subTest(phase=phase):
                before = self.counts()["ends"]
                o, err, then = self.lua.run(code, phase)
                self.assertEqual((o, then), ("nil", "closed"))
                self.assertRegex(err, "PENDING in .*_by_lua.*cannot wait")
                self.assertEqual(self.counts()["ends"], before + 2)
        self.none_left()

    def test_configuration_that_a_variant_cannot_serve(self):
        self.assertEqual(self.lua.run('return (pxg.filter("must-pend")) ~= nil'), ["true"])
        _, err = self.lua.run('return pxg.filter("must-pend", {sync = true})')
        self.assertIn("must-pend needs PEND_RESPONSE_HEADERS", err)
        _, err = self.lua.run('return pxg.filter("whole", {without = {"BODY_WHOLE_REQUEST"}})')
        self.assertIn("BODY_WHOLE", err)

    # ---- Messages ----------------------------------------------------------------------------------------------------

    def test_whole_bodies(self):
        got = self.lua.run("""
            local s = pxg.filter("whole"):stream()
            local a = s:request_headers(head{["content-length"] = "10"})
            local b = s:request_body("hello")
            local c = s:request_body("again", true)
            return a.action, a.headers, b.action, b.body, c.action, c.body, c.headers["content-length"], c.last""")
        self.assertEqual(got, ["more", "nil", "more", "", "continue", "HELLOAGAIN", "", "11", "true"])

    def test_big_bodies(self):
        got = self.lua.run("""
            local s = pxg.filter("stream"):stream()
            s:request_headers(head())
            local piece, sum, last = ("a"):rep(65536), 0
            for i = 1, 64 do
                local o = assert(s:request_body(piece, i == 64))
                sum, last = sum + #o.body, o.last
                assert(not o.body:find("a"))
            end
            return sum, last""")
        self.assertEqual(got, [str(4 << 20), "true"])

    def test_bytes_are_bytes(self):
        got = self.lua.run(r"""
            local s = pxg.filter("stream"):stream()
            s:request_headers(head{["x-high"] = "\200\0\201x", ["x-empty"] = "", ["x-number"] = 7})
            local bytes = "\0\255\r\n"
            local o = s:request_body(bytes, true)
            return o.body == bytes""")
        self.assertEqual(got, ["true"])

    def test_fields_in_both_forms(self):
        got = self.lua.run("""
            local f = pxg.filter("headers")
            local o = f:request_headers{{"X-B", "1"}, {":method", "GET"}, {":path", "/"}, {":scheme", "http"},
                                        {":authority", "e"}, {"x-b", "2"}, {"x-c", ""}}
            return o.headers["x-b"][1] .. o.headers["x-b"][2], o.headers["x-c"] == "", o.headers[":path"]""")
        self.assertEqual(got, ["12", "true", "/"])
        got = self.lua.run("""
            local more = {}
            for i = 1, 200 do more["x-" .. i] = i end
            local o = pxg.filter("headers"):request_headers(head(more))
            local n = 0
            for _ in pairs(o.headers) do n = n + 1 end
            return n, o.headers["x-200"]""")
        self.assertEqual(got, ["205", "200"])

    def test_operations_by_index(self):
        got = self.lua.run("""
            local o = pxg.filter("path"):request_headers(head{["x-index"] = {"1", "2", "3"}})
            return unpack(o.headers["x-index"])""")
        self.assertEqual(got, ["set", "3"])

    def test_trailers(self):
        got = self.lua.run("""
            local s = pxg.filter("trailers"):stream()
            s:request_headers(head())
            s:request_body("x")
            local o = s:request_trailers{["x-own"] = "1"}
            s:response_headers{[":status"] = 200}
            local p = s:response_trailers{["x-own"] = "2"}
            return o.last, o.trailers["x-own"], o.trailers["x-trailer"], p.trailers["x-own"], p.trailers["x-trailer"],
                   "end" """)
        # What Lua can do and the module's table does not say is not offered.
        bits = self.counts()["features"]
        changed = [(bits >> seen & bits >> out) & 1 and "guest" or "nil" for seen, out in ((20, 22), (21, 23))]
        self.assertEqual(got, ["true", "1", changed[0], "2", changed[1], "end"])

    def test_replies(self):
        got = self.lua.run("""
            local s = pxg.filter("deny"):stream()
            local o = s:request_headers(head())
            local r = o.reply
            return o.action, r.status, r.body, r.headers["x-reply"][2], r.headers["content-length"], r.details,
                   r.headers[":status"], (select(2, s:request_body("x")))""")
        self.assertEqual(got, ["reply", "403", "denied", "", "twice", "7", "deny.said so", "nil", "a guest has replied"])
        got = self.lua.run("""
            local o = pxg.filter("deny"):request_headers(head{[":method"] = "HEAD"})
            return o.reply.status, #o.reply.body, o.reply.headers["content-length"]""")
        self.assertEqual(got[:2], ["403", "0"])

    def test_failures(self):
        got = self.lua.run("""
            local o = pxg.filter("error"):request_headers(head())
            return o.action, o.reply.status, o.reply.details, pxg.filter("reset"):request_headers(head())""")
        self.assertEqual(got, ["reply", "500", "error.error", "nil", "reset"])

    def test_deadline(self):
        got = self.lua.run("""
            local o = pxg.filter("never"):request_headers(head())
            return o.action, o.reply.status, o.reply.details""")
        self.assertEqual(got, ["reply", "500", "never.deadline"])
        self.none_left()

    def test_chain(self):
        got = self.lua.run("""
            local s = pxg.stream{pxg.filter("pend"), pxg.filter("headers"), pxg.filter("pend")}
            local o = s:request_headers(head(), true)
            return o.last, unpack(o.headers["x-guest"])""")
        self.assertEqual(got, ["true", "thread", "sync", "thread"])

    # ---- Misuse ------------------------------------------------------------------------------------------------------

    def test_bad_arguments(self):
        for code, expected in (
            ('pxg.filter(7)', "bad name of a filter"),
            ('pxg.stream{}', "bad chain"),
            ('pxg.stream{"headers"}', "entry 1 is no filter"),
            ('pxg.load(7)', "expected a table"),
            ('pxg.load{filter = "x"}', 'bad option "guest"'),
            ('pxg.load{guest = "a\\0b", filter = "x"}', 'bad option "guest"'),
            ('pxg.load{guest = "x", filter = "x", failure_mode = "half"}', 'bad option "failure_mode"'),
            ('pxg.load{guest = "x", filter = "x", failure_status = 404}', "500 to 599"),
            ('pxg.load{guest = "x", filter = "x", pend_limit = -1}', 'bad option "pend_limit"'),
            ('pxg.load{guest = "x", filter = "x", max_body = 0/0}', 'bad option "max_body"'),
            ('pxg.load{guest = "x", filter = "x", config = {}}', 'bad option "config"'),
            ('pxg.filter("headers", {without = {"SPEED"}})', "found SPEED"),
            ('pxg.filter("headers"):stream():request_headers("x")', "bad headers"),
            ('pxg.filter("headers"):stream():finish("why")', "bad cause"),
            ('local s = pxg.filter("headers"):stream() s:request_headers(head()) s:request_body(7)', "bad bytes"),
            ('pxg.respond{}', "bad reply"),
        ):
            with self.subTest(code=code):
                self.assertIn("ERROR", self.lua.run(code)[0])
                self.assertIn(expected, "\n".join(self.lua.run(code)))

    def test_refusals(self):
        text = f"{self.path}/text.so"
        with open(text, "w") as f:
            f.write("no library")
        for code, expected in (
            ('pxg.filter("none")', 'no filter "none"'),
            (f'pxg.load{{guest = "{self.path}/none.so", filter = "x"}}', "none.so"),
            (f'pxg.load{{guest = "{text}", filter = "x"}}', "text.so"),
            (f'pxg.load{{guest = "{self.guest}", filter = "toast"}}', "toast"),
            (f'pxg.load{{guest = "{self.guest}", filter = "lua-test", config = "refuse"}}', "no word of this guest"),
            (f'pxg.load{{guest = "{self.guest}", filter = "lua-test", name = "a b", config = "headers"}}', "a b"),
            ('pxg.filter("headers"):request_headers{x = {{}}}', "bad field"),
            ('pxg.filter("headers"):request_headers{[{}] = "x"}', "bad field"),
            ('pxg.filter("headers"):stream():response_headers{}', "request's headers come first"),
            ('pxg.filter("headers"):stream():request_body("x")', "headers come first"),
            ('(function() local s = pxg.filter("headers"):stream() s:request_headers(head()) '
             'return s:request_headers(head()) end)()', "have been given"),
        ):
            with self.subTest(code=code):
                o, err = self.lua.run("return " + code)
                self.assertEqual(o, "nil")
                self.assertIn(expected, err)
        self.none_left()

    def test_load_replaces(self):
        load = f'pxg.load{{guest = "{self.guest}", filter = "lua-test", name = "swap", config = "%s"}}'
        got = self.lua.run(f"""
            local f = {load % "headers"}
            local old = f:stream()
            old:request_headers(head())
            local _, err = {load % "refuse"}
            local kept = f:request_headers(head()).headers["x-guest"]
            assert({load % "deny"})
            local o = f:request_headers(head())
            local p = old:response_headers{{[":status"] = 200}}
            return err:match("no word"), kept, o.action, p.headers["x-guest"]""")
        self.assertEqual(got, ["no word", "sync", "reply", "sync"])

    def test_stream_of_another_request(self):
        self.assertEqual(self.lua.run('kept.s = pxg.filter("headers"):stream() return kept.s:request_headers(head()).action'),
                         ["continue"])
        self.none_left()
        # Also where its place has been taken by another one.
        got = self.lua.run("""
            local new = pxg.filter("deny"):stream()
            new:request_headers(head())
            return pxg.streams(), new.handle % 2 ^ 20 == kept.s.handle % 2 ^ 20, kept.s:request_body("x", true)""")
        self.assertEqual(got, ["1", "true", "nil", "closed"])

    def test_busy(self):
        got = self.lua.run("""
            local s = pxg.filter("hang"):stream()
            local t = ngx.thread.spawn(function() return s:request_headers(head()) end)
            local _, err = s:request_body("x")
            s:finish("error")
            local ok, o, woken = ngx.thread.wait(t)
            return err, o, woken, pxg.streams()""")
        self.assertEqual(got, ["busy: another thread waits for a guest in this direction", "nil", "closed", "0"])

    # ---- Pending -----------------------------------------------------------------------------------------------------

    def test_a_thousand_at_once(self):
        code = """
            local n, threads = 0, {}
            for i = 1, 10 do
                threads[i] = ngx.thread.spawn(function()
                    local s = pxg.filter("pend"):stream()
                    local o = assert(s:request_headers(head(), true))
                    local p = assert(s:response_headers({[":status"] = 200}, true))
                    s:finish()
                    n = n + (o.headers["x-guest"] == "thread" and p.headers["x-guest"] == "thread" and 1 or 0)
                end)
            end
            for i = 1, 10 do assert(ngx.thread.wait(threads[i])) end
            return n"""
        url = self.lua.url("content", code)
        clients = [harness.Client(self.lua.socket) for _ in range(1000)]
        try:
            for c in clients:
                c.send(harness.request("GET", url))
            got = [c.answer().body for c in clients]
        finally:
            for c in clients:
                c.socket.close()
        self.assertEqual(got, [b"10\n"] * 1000)
        self.none_left()

    def test_clients_that_go_away(self):
        before = self.counts()
        url = self.lua.url("access", 'return pxg.filter("hang"):request_headers(head())')
        clients = [harness.Client(self.lua.socket) for _ in range(200)]
        for c in clients:
            c.send(harness.request("GET", url))
        harness.wait_for("all pend", lambda: self.lua.run("return pxg.streams()") == ["200"])
        for c in clients:
            c.socket.close()
        self.none_left()
        after = self.counts()
        self.assertEqual((after["cancels"] - before["cancels"], after["ends"] - before["ends"]), (200, 201))
        harness.wait_for("what was completed late is stale", lambda: self.counts()["stale"] == before["stale"] + 200)

    def test_threads_that_are_killed(self):
        before = self.counts()["cancels"]
        got = self.lua.run("""
            local s = pxg.filter("hang"):stream()
            local t = ngx.thread.spawn(function() return s:request_headers(head()) end)
            ngx.thread.kill(t)
            local _, err = s:request_body("x")
            local open = pxg.streams()
            collectgarbage()
            return err:match("busy"), open, s:finish("error"), pxg.streams()""")
        self.assertEqual(got, ["busy", "1", "true", "0"])
        self.assertEqual(self.counts()["cancels"], before + 1)

    def test_requests_that_end_while_a_thread_pends(self):
        before = self.counts()["cancels"]
        for _ in range(50):
            self.assertEqual(self.lua.ask("/ends/hang").status, 204)
        self.none_left()
        self.assertEqual(self.counts()["cancels"], before + 50)
        self.assertNotIn("went on", self.nginx.log())

    def test_timer_without_an_end(self):
        got = self.lua.run("""
            ngx.timer.at(0, function() kept.forgotten = pxg.filter("hang"):stream()
                                       kept.forgotten:request_headers(head()) end)
            ngx.sleep(0)
            return "ok" """)
        self.assertEqual(got, ["ok"])
        harness.wait_for("it pends", lambda: self.lua.run("return pxg.streams()") == ["1"])
        self.assertEqual(self.lua.run("return kept.forgotten:finish('error')"), ["true"])
        self.none_left()

    def test_memory(self):
        code = """
            local f, g = pxg.filter("headers"), pxg.filter("pend")
            for i = 1, 10000 do
                local s = f:stream()
                s:request_headers(head{["x-a"] = {"1", "2"}})
                s:request_body("hello", true)
                s:response_headers{[":status"] = 200}
                s:response_body("bye", true)
                s:finish()
                if i % 20 == 0 then g:request_headers(head()) end
            end
            collectgarbage()
            return pxg.streams()"""
        rss = lambda: harness.status_of(self.nginx.workers()[0], "VmRSS")
        for phase in ("content", "timer"):
            self.lua.run(code, phase)
        before = rss()
        for _ in range(5):
            for phase in ("content", "timer"):
                self.assertEqual(self.lua.run(code, phase), ["0"])
        self.assertLess(rss() - before, 1500, "KiB over 100,000 streams")

    # ---- The request that nginx serves -------------------------------------------------------------------------------

    def test_phases_of_a_proxied_request(self):
        for word, expected in (("headers", "sync"), ("pend", "thread")):
            with self.subTest(word=word):
                got = self.lua.ask(f"/via/{word}/%7Ea/../x%20y?q=%20", fields=("X-A: 1", "X-Empty:", "X-A: 2"))
                text = got.body.decode()
                self.assertEqual(got.status, 200)
                self.assertIn(f"GET /via/{word}/x%20y?q=%20\n", text)
                self.assertIn(f"x-guest: {expected}\n", text)
                self.assertIn("x-a: 1\nx-empty: \nx-a: 2\n", text)
                # In the response phase the guest was told to answer at once.
                self.assertEqual((got.get("x-guest"), got.get("x-up")), (["sync"], ["1", "2"]))
                self.assertEqual(got.get("content-type"), ["text/x-said"])
        self.assertEqual(self.lua.ask("/via/headers", method="HEAD").get("x-guest"), ["sync"])
        self.none_left()

    def test_changed_request(self):
        text = self.lua.ask("/via/path", fields=("X-Drop: 1", "X-Keep: 2")).body.decode()
        self.assertTrue(text.startswith("PUT /changed?q=1\n"), text)
        self.assertIn("host: guest.example\n", text)
        self.assertIn("x-keep: 2\n", text)
        self.assertNotIn("x-drop", text)

    def test_bodies_of_a_proxied_request(self):
        for size in (10, 300 << 10):
            body = b"abc" * size
            got = self.lua.ask("/via/whole", method="POST", body=body)
            self.assertTrue(got.body.endswith(b"\n\n" + body.upper() + b"\n"))
            self.assertIn(f"content-length: {len(body) + 1}\n".encode(), got.body)
            got = self.lua.ask("/via/stream", method="POST", body=body)
            self.assertTrue(got.body.endswith(b"\n\n" + body.replace(b"a", b"b")))
            self.assertIn(b"POST /vib/strebm", got.body)
        self.none_left()

    def test_bodies_in_files(self):
        """Piece by piece; what comes before the first change, and what has none, stays as it is."""
        piece = 65536
        for body in (b"x" * (2 * piece), b"x" * (3 * piece + 7), b"x" * (2 * piece) + b"abc", b"x" * (2 * piece + 9) + b"a" * piece,
                     b"a" + b"x" * (4 * piece), b"x" * (piece - 1) + b"aa" + b"x" * piece):
            for fields, sent in (((), body),
                                 (("Transfer-Encoding: chunked",), b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))):
                with self.subTest(length=len(body), at=body.find(b"a"), fields=fields):
                    got = self.lua.ask("/via/stream", method="POST", fields=fields, body=sent)
                    said = got.body.partition(b"\n\n")
                    self.assertTrue(said[2] == body.replace(b"a", b"b"))
                    self.assertIn(b"content-length: %d" % len(body), said[0])

    def test_replies_to_a_proxied_request(self):
        seen = self.upstream.seen
        got = self.lua.ask("/via/deny", method="POST", body=b"x" * 100000)
        self.assertEqual((got.status, got.body, got.get("x-reply"), got.get("content-type")),
                         (403, b"denied\n", ["yes", "twice"], []))
        self.assertEqual(self.lua.ask("/via/deny", method="HEAD").status, 403)
        self.assertEqual(self.lua.ask("/via/error").status, 500)
        self.assertEqual(self.lua.ask("/via/never").status, 500)
        self.assertIsNone(self.lua.ask("/via/reset"))
        self.assertEqual(self.upstream.seen, seen)
        got = self.lua.ask("/via/late")
        self.assertEqual((got.status, got.body, got.get("x-up"), got.get("content-length")),
                         (403, b"denied\n", [], ["7"]))
        self.none_left()

    # ---- What is written beside the code -----------------------------------------------------------------------------

    def test_example_configuration(self):
        policy = common.build(f"{common.ROOT}/guest-sdk/c/examples/header-policy.c", "header-policy")
        go = common.go_bundle()
        with harness.folder() as path, harness.Upstream(f"{path}/up.sock", self.answer):
            with open(f"{common.HERE}/../examples/nginx.conf") as f:
                conf = f.read()
            for was, now in (
                ("events {}", f"daemon off; user root; pid {path}/nginx.pid; error_log {path}/logs/error.log info; events {{}}"),
                ("/usr/lib/nginx/modules/ngx_http_proxy_golang_module.so", harness.MODULE),
                ("/usr/lib/nginx/modules", common.LUA_MODULES),
                ("/usr/share/lua-resty-proxy-golang/lib/?.lua", f"{common.HERE}/../lib/?.lua;{common.LUA_PATH}"),
                ("/usr/lib/proxy_golang/header-policy.so", policy),
                ("/usr/lib/proxy_golang/bundle.so", go),
                ("listen 127.0.0.1:8080", f"listen unix:{path}/n.sock"),
                ("http://127.0.0.1:9000", f"http://unix:{path}/up.sock"),
            ):
                self.assertIn(was, conf)
                conf = conf.replace(was, now)
            with harness.Nginx(path, conf, f"{path}/n.sock"):
                ask = lambda url: harness.ask(f"{path}/n.sock", url)
                self.assertEqual(ask("/verdict?path=/secret/1").body, b"reply 404\n")
                self.assertEqual(ask("/verdict?path=/").body, b"continue \n")
                self.assertEqual(ask("/secret/1").status, 404)
                # token-check wants a token.
                self.assertEqual(ask("/open").status, 401)

    def test_packages_have_all_files(self):
        with open(f"{common.HERE}/../lua-resty-proxy-golang-1.0.0-1.rockspec") as f:
            rock = set(re.findall(r'"(lib/[^"]+)"', f.read()))
        lib = f"{common.HERE}/../lib"
        files = {os.path.relpath(f"{d}/{n}", f"{lib}/..") for d, _, names in os.walk(lib) for n in names}
        self.assertEqual(rock, files)

    def test_features_are_those_of_the_header(self):
        with open(f"{common.ROOT}/include/proxy_golang.h") as f:
            header = dict(re.findall(r"#define PXG_F_(\w+) (\d+)", f.read()))
        got = self.lua.run("""
            local t = {}
            for k, v in pairs(require("resty.proxy_golang.features")) do t[#t + 1] = k .. " " .. v end
            return table.concat(t, ",")""")
        self.assertEqual(dict(f.split() for f in got[0].split(",")), header)

    # ---- Guests of the SDKs --------------------------------------------------------------------------------------------

    def test_go_guests(self):
        """hello answers at once, token-check asks an authority over HTTP from a goroutine."""
        go = common.go_bundle()

        def authority(connection):
            with connection:
                f = connection.makefile("rb")
                while f.readline():
                    token = b""
                    while (line := f.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"authorization:"):
                            token = line.split(b":", 1)[1].strip()
                    status = b"200 OK" if token == b"good" else b"403 Forbidden"
                    connection.sendall(b"HTTP/1.1 " + status + b"\r\nX-Subject: alice\r\nContent-Length: 0\r\n\r\n")

        def accept(listener):
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=authority, args=(listener.accept()[0],), daemon=True).start()

        with harness.folder() as path, socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=accept, args=(listener,), daemon=True).start()
            port = listener.getsockname()[1]
            conf = common.conf(path, self.guest, more=f"""
                proxy_golang_filter token-check {{ guest {go};
                    config '{{"authority": "http://127.0.0.1:{port}/check", "timeout_ms": 20000}}'; }}""")
            with harness.Nginx(path, conf, f"{path}/n.sock") as nginx:
                lua = common.Console(path)
                code = """
                    local said = {}
                    local function ask(token)
                        local o, err = pxg.filter("token-check"):request_headers(head{authorization = token})
                        said[#said + 1] = err or o.action .. " " .. tostring(o.headers and o.headers["x-subject"]
                                                                             or o.reply and o.reply.status)
                    end
                    local threads = {}
                    for i = 1, 50 do threads[i] = ngx.thread.spawn(ask, i % 2 == 0 and "good" or "bad") end
                    for i = 1, 50 do ngx.thread.wait(threads[i]) end
                    table.sort(said)
                    return said[1], said[25], said[26], said[50], pxg.streams()"""
                for phase in YIELD:
                    self.assertEqual(lua.run(code, phase), ["continue alice"] * 2 + ["reply 403"] * 2 + ["0"], nginx.log())
            listener.shutdown(socket.SHUT_RDWR)

    def test_rust_guest(self):
        """async-echo: a request waits in the guest until another one comes."""
        guest = common.rust_guest()
        if not guest:
            self.skipTest("no libbody_rewrite.so: cargo build -p body-rewrite")
        got = self.lua.run(f"""
            local f = assert(pxg.load{{guest = "{guest}", filter = "async-echo"}})
            local held = ngx.thread.spawn(function() return f:request_headers(head{{["x-wait-for"] = "k"}}) end)
            local before = coroutine.status(held)
            f:request_headers(head{{["x-release"] = "k", [":path"] = "/b"}})
            local ok, o = ngx.thread.wait(held)
            return before, o.headers["x-released-by"]""")
        self.assertEqual(got, ["running", "/b"])

    # ---- Workers -----------------------------------------------------------------------------------------------------

    def test_reload_while_pending(self):
        """Requests that pend when the workers change are finished by the old ones."""
        code = """
            local s = pxg.filter("pend"):stream()
            for i = 1, 50 do
                s = pxg.filter("pend"):stream()
                local o = assert(s:request_headers(head(), true))
                assert(o.headers["x-guest"] == "thread")
                s:finish()
                ngx.sleep(0.001)
            end
            return "done" """
        stop = threading.Event()
        got = []

        def run():
            while not stop.is_set():
                got.append(self.lua.run(code))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(run) for _ in range(8)]
            try:
                for _ in range(3):
                    self.nginx.reload()
            finally:
                stop.set()
            for j in jobs:
                j.result()
        self.assertEqual([g for g in got if g != ["done"]], [])

    def test_fast_shutdown_while_pending(self):
        with harness.folder() as path:
            with harness.Nginx(path, common.conf(path, self.guest), f"{path}/n.sock") as nginx:
                lua = common.Console(path)
                with harness.Client(lua.socket) as c:
                    c.send(harness.request("GET", lua.url("content", 'return pxg.filter("hang"):request_headers(head())')))
                    harness.wait_for("it pends", lambda: lua.run("return pxg.streams()") == ["1"])
                    nginx.signal(signal.SIGTERM)
                    nginx.process.wait(harness.DEADLINE)
                self.assertNotRegex(nginx.log(), r"exited on signal|\[alert\]")

    def test_master_loads_no_guest(self):
        with harness.folder() as path:
            conf = common.conf(path, self.guest, more=f"""
                init_by_lua_block {{
                  local f, err = require("resty.proxy_golang").load{{guest = "{self.guest}", filter = "lua-test",
                                                                    config = "headers"}}
                  ngx.log(ngx.ERR, "init: ", f, " ", err)
                }}""")
            with harness.Nginx(path, conf, f"{path}/n.sock") as nginx:
                self.assertIn("init: nil guests run in worker processes", nginx.log())
                with open(f"/proc/{nginx.process.pid}/maps") as f:
                    self.assertNotIn("lua-guest", f.read())

    def test_filters_that_only_lua_has(self):
        with harness.folder() as path:
            conf = common.conf(path, self.guest, init=f"""
                local f, err = require("resty.proxy_golang").load{{guest = "{self.guest}", filter = "lua-test",
                                                                  name = "own", config = "pend"}}
                if not f then ngx.log(ngx.ERR, err) end""")
            conf = "".join(line for line in conf.splitlines(True) if not line.lstrip().startswith("proxy_golang_filter"))
            with harness.Nginx(path, conf, f"{path}/n.sock") as nginx:
                got = common.Console(path).run('return pxg.filter("own"):request_headers(head()).headers["x-guest"]')
                self.assertEqual(got, ["thread"], nginx.log())


if __name__ == "__main__":
    unittest.main()
