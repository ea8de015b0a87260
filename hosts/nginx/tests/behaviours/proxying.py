# SPDX-License-Identifier: Apache-2.0
"""proxy_pass and its relatives: fields, errors, keep-alive, X-Accel, FastCGI, uwsgi, SCGI."""

import struct

from harness import request

from . import FILES, Subject, chunked, echo, response

TEXT = b"answer of the upstream\n"
LONG = FILES["big.bin"]


def pieces(*parts):
    def answer(_, connection):
        for p in parts:
            connection.say(p)
        return False
    return answer


ORIGIN = {
    "/text": response(TEXT, "Content-Type: text/plain", "X-One: 1", "x-two: 2", "X-One: again"),
    "/long": response(LONG),
    "/until-close": response(TEXT, length=False),
    "/http10": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + TEXT,
    "/http09": TEXT,
    "/chunked": response(chunked(b"one", b"two", LONG[:50_000]), "Transfer-Encoding: chunked", length=False),
    "/chunked-trailers": response(chunked(b"one", trailers=b"X-Trailer: 1\r\n"), "Transfer-Encoding: chunked",
                                  "Trailer: X-Trailer", length=False),
    "/chunked-bad": response(b"3\r\none\r\nzz\r\n", "Transfer-Encoding: chunked", length=False),
    "/chunked-cut": response(b"3\r\none\r\n10\r\ntwo", "Transfer-Encoding: chunked", length=False),
    "/cut": response(LONG).replace(LONG, LONG[:1000]),
    "/more": response(b"four").replace(b"four", b"four and more"),
    "/empty": response(b""),
    "/204": response(status="204 No Content", length=False),
    "/304": response(b"", 'ETag: "x"', status="304 Not Modified", length=False),
    "/404": response(b"not here\n", "Content-Type: text/plain", status="404 Not Found"),
    "/500": response(b"broken\n", "Content-Type: text/plain", status="500 Internal Server Error"),
    "/503": response(b"later\n", "Retry-After: 7", status="503 Service Unavailable"),
    "/401": response(b"who?\n", 'WWW-Authenticate: Basic realm="up"', status="401 Unauthorized"),
    "/301": response(b"", "Location: http://up.example/else/where?x=y", status="301 Moved Permanently"),
    "/302": response(b"", "Location: /text", status="302 Found"),
    "/refresh": response(b"", "Refresh: 5; url=http://up.example/next"),
    "/cookie": response(b"", "Set-Cookie: a=1; Domain=up.example; Path=/up/", "Set-Cookie: b=2; Secure"),
    "/odd-reason": response(TEXT, status="299 A reason: of its own"),
    "/no-reason": response(TEXT, status="200"),
    "/999": response(TEXT, status="999 Odd"),
    "/103": pieces(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", response(TEXT)),
    "/bad-status": b"HTTP/1.1 abc OK\r\n\r\n",
    "/bad-field": b"HTTP/1.1 200 OK\r\nno colon\r\nX-Fine: 1\r\nContent-Length: 2\r\n\r\nok",
    "/bad-length": response(b"ok", "Content-Length: x", length=False),
    "/two-lengths": response(b"ok", "Content-Length: 2", "Content-Length: 3", length=False),
    "/length-and-chunks": response(chunked(b"ok"), "Transfer-Encoding: chunked", "Content-Length: 2", length=False),
    "/big-head": response(TEXT, *[f"X-{i}: {'a' * 100}" for i in range(30)]),
    "/huge-head": response(TEXT, "X-Huge: " + "a" * 20_000),
    "/hop": response(TEXT, "Connection: x-hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Authenticate: x"),
    "/known": response(TEXT, "Date: Thu, 24 Sep 1970 04:53:20 GMT", "Server: up/1", "Last-Modified: Thu, 24 Sep 1970 04:53:20 GMT",
                       'ETag: "up"', "Cache-Control: no-cache", "Cache-Control: private", "Vary: x", "Link: </b>",
                       "Accept-Ranges: bytes", "Content-Type: text/html; charset=iso-8859-1", "X-Powered-By: x"),
    "/nothing": b"",
    "/half-head": b"HTTP/1.1 200 OK\r\nX-Half",
    "/slow-parts": pieces(response(TEXT * 3).replace(TEXT * 3, TEXT), TEXT, TEXT),
    "/accel": response(b"unseen", "X-Accel-Redirect: /internal/text.txt", "X-Kept: no", "Set-Cookie: kept=yes"),
    "/accel-named": response(b"unseen", "X-Accel-Redirect: @accel"),
    "/accel-missing": response(b"unseen", "X-Accel-Redirect: /internal/none.txt"),
    "/accel-up": response(b"unseen", "X-Accel-Redirect: /text?from=accel"),
    "/accel-rate": response(LONG[:200_000], "X-Accel-Limit-Rate: 10000000", "X-Accel-Charset: utf-8", "Content-Type: text/html"),
    "/accel-unbuffered": response(LONG, "X-Accel-Buffering: no"),
    "/range": response(LONG, "Accept-Ranges: bytes", 'ETag: "range"'),
}

s = Subject("proxy", """
location / { proxy_pass http://%UP%; }
location /slash/ { proxy_pass http://%UP%:/; }
location /uri/ { proxy_pass http://%UP%:/base/; }
location /variable/ { set $up "%UP%"; proxy_pass http://$up:$request_uri; }
location ~ ^/regex/(.*)$ { proxy_pass http://%UP%:/from-regex/$1?$args; }
location /rewritten/ { rewrite ^/rewritten/(.*) /new/$1?added=1 break; proxy_pass http://%UP%; }
location /fields/ {
  proxy_pass http://%UP%; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Gone ""; proxy_set_header X-Set "a b"; proxy_set_header Accept-Encoding "";
}
location /no-fields/ { proxy_pass http://%UP%; proxy_pass_request_headers off; }
location /1.1/ { proxy_pass http://%UP%:/; proxy_http_version 1.1; proxy_set_header Connection ""; }
location /nobuf/ { proxy_pass http://%UP%:/; proxy_buffering off; }
location /tiny/ { proxy_pass http://%UP%:/; proxy_buffer_size 4k; proxy_buffers 4 4k; proxy_busy_buffers_size 4k; }
location /files/ { proxy_pass http://%UP%:/; proxy_buffers 2 4k; proxy_buffer_size 4k; proxy_busy_buffers_size 4k; proxy_max_temp_file_size 10m; proxy_temp_file_write_size 8k; }
location /rate/ { proxy_pass http://%UP%:/; proxy_limit_rate 2m; }
location /hide/ { proxy_pass http://%UP%:/; proxy_hide_header X-One; proxy_pass_header Server; proxy_pass_header Date; }
location /ignore/ { proxy_pass http://%UP%:/; proxy_ignore_headers X-Accel-Redirect; }
location /redirect/ { proxy_pass http://%UP%:/; proxy_redirect http://up.example/ /mapped/; proxy_redirect ~^/(.*) /tilde/$1; }
location /cookies/ { proxy_pass http://%UP%:/; proxy_cookie_domain up.example e.example; proxy_cookie_path /up/ /down/; proxy_cookie_flags b httponly; }
location /intercept/ { proxy_pass http://%UP%:/; proxy_intercept_errors on; error_page 404 /small.txt; error_page 500 502 =200 /text; error_page 503 @later; error_page 401 /text; }
location @later { add_header X-Later yes always; return 503 "our own page\\n"; }
location = /small.txt { }
location /forced/ { proxy_pass http://%UP%:/; proxy_force_ranges on; }
location /ranges/ { proxy_pass http://%UP%:/; }
location /internal/ { internal; alias %D%/html/; add_header X-Internal yes; }
location @accel { return 200 "accel named $upstream_http_x_accel_redirect\\n"; }
location /store/ { proxy_pass http://%UP%:/; proxy_store %D%/temp/stored; proxy_store_access all:r; }
""", origin=ORIGIN)
s.get("no URI in proxy_pass", "/some/path?a=b&c=%20d")
s.get("URI / in proxy_pass", "/slash/some/path?a=b")
s.get("URI in proxy_pass", "/uri/some%2Fpath?a=b")
s.get("variables in proxy_pass", "/variable/x?y=z")
s.get("regex in proxy_pass", "/regex/a/b?c=d")
s.get("rewrite before proxy_pass", "/rewritten/a?b=c")
s.get("proxy_set_header", "/fields/", "X-Gone: 1", "X-Forwarded-For: 10.0.0.1", "Accept-Encoding: gzip", "Cookie: a=b", host="Some.Host")
s.get("proxy_pass_request_headers off", "/no-fields/", "X-Mine: 1")
s.get("all fields of a client", "/echo", "User-Agent: u/1", "Accept: */*", "Accept-Language: de", "Referer: http://r/", "Cookie: a=b; c=d",
      "Authorization: Basic eDp5", "If-None-Match: \"x\"", "Range: bytes=0-1", "Upgrade: nothing", "TE: trailers", "X-Case: all")
s.get("protocol 1.1 to the upstream", "/1.1/echo")
s.get("HEAD", "/text", method="HEAD")
s.get("HEAD of something long", "/long", method="HEAD")
for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND", "BREW"):
    s.get(f"method {method}", "/echo", method=method)
for path in ("text", "long", "until-close", "http10", "http09", "chunked", "chunked-trailers", "chunked-bad", "chunked-cut", "cut",
             "more", "empty", "204", "304", "404", "500", "503", "401", "301", "302", "refresh", "cookie", "odd-reason",
             "no-reason", "999", "103", "bad-status", "bad-field", "bad-length", "two-lengths", "length-and-chunks", "big-head",
             "huge-head", "hop", "known", "nothing", "half-head", "slow-parts", "accel", "accel-named", "accel-missing", "accel-up",
             "accel-rate", "accel-unbuffered"):
    s.get(f"upstream: {path}", f"/{path}")
for path in ("text", "long", "until-close", "chunked", "cut", "chunked-cut", "chunked-bad", "empty", "204", "304", "slow-parts", "accel", "nothing"):
    s.get(f"unbuffered: {path}", f"/nobuf/{path}")
    s.get(f"1.1: {path}", f"/1.1/{path}")
for path in ("long", "chunked", "cut", "big-head"):
    s.get(f"small buffers: {path}", f"/tiny/{path}")
s.get("temporary files", "/files/long")
s.get("temporary files, HTTP/1.0 client", "/files/chunked", protocol="HTTP/1.0")
s.get("proxy_limit_rate", "/rate/long")
s.get("proxy_hide_header, proxy_pass_header", "/hide/text")
s.get("proxy_pass_header of what nginx sets itself", "/hide/known")
s.get("proxy_ignore_headers", "/ignore/accel")
s.get("X-Accel-Redirect, HEAD", "/accel", method="HEAD")
s.get("X-Accel-Redirect after a POST", "/accel", method="POST", body=b"posted" * 2000)
s.get("X-Accel-Redirect with a range", "/accel", "Range: bytes=5-9")
s.get("proxy_redirect: absolute", "/redirect/301")
s.get("proxy_redirect: regex", "/redirect/302")
s.get("proxy_cookie_*", "/cookies/cookie")
for path in ("404", "500", "503", "401", "nothing", "text"):
    s.get(f"proxy_intercept_errors: {path}", f"/intercept/{path}")
s.get("proxy_intercept_errors: after a POST", "/intercept/404", method="POST", body=b"x" * 20_000)
s.get("proxy_intercept_errors: HEAD", "/intercept/404", method="HEAD")
s.get("proxy_force_ranges", "/forced/long", "Range: bytes=10-19")
s.get("range of an upstream that has them", "/ranges/range", "Range: bytes=10-19")
s.get("ranges of an upstream that has them", "/ranges/range", "Range: bytes=10-19,30-39")
s.get("proxy_store", "/store/long")
s.get("HTTP/1.0 client, chunked upstream", "/chunked", protocol="HTTP/1.0")
s.get("HTTP/1.0 client, upstream until close", "/until-close", protocol="HTTP/1.0")

# ---- Several upstreams -----------------------------------------------------------------------------------------------


def flaky(req, connection):
    """Every other connection is dropped."""
    connection.server.flaky = not getattr(connection.server, "flaky", False)
    return False if connection.server.flaky else echo(req, connection)


def hang(req, connection):
    connection.rfile.read(1)
    return False


s = Subject("upstreams", """
proxy_http_version 1.1; proxy_set_header Connection "";
location /kept/ { proxy_pass http://kept/; }
location /dead-first/ { proxy_pass http://dead_first/; }
location /dead/ { proxy_pass http://dead/; }
location /dead-page/ { proxy_pass http://dead/; error_page 502 /page502; }
location = /page502 { return 502 "our 502\\n"; }
location /dead-named/ { proxy_pass http://dead/; error_page 502 504 = @fallback; }
location @fallback { proxy_pass http://%UP%; }
location /next/ { proxy_pass http://kept/; proxy_next_upstream error timeout http_500 http_404; }
location /flaky/ { proxy_pass http://several/flaky; proxy_next_upstream error timeout; }
location /flaky-any/ { proxy_pass http://several/flaky; proxy_next_upstream error non_idempotent; }
location /flaky-off/ { proxy_pass http://several/flaky; proxy_next_upstream off; }
location /status/ { proxy_pass http://several/; proxy_next_upstream http_503 http_500; }
location /slow/ { proxy_pass http://kept/hang; proxy_read_timeout 200ms; }
location /slow-page/ { proxy_pass http://kept/hang; proxy_read_timeout 200ms; error_page 504 =200 /page504; }
location = /page504 { return 200 "late\\n"; }
location /hash/ { proxy_pass http://hashed/; }
location /refused/ { proxy_pass http://127.0.0.1:1/; }
""", """
upstream kept { server %UP%; keepalive 4; }
upstream dead { server unix:%D%/nothing.sock; }
upstream dead_first { server unix:%D%/nothing.sock max_fails=0; server %UP% max_fails=0; }
upstream several { server %UP% max_fails=0; server %UP% max_fails=0; }
upstream hashed { hash $uri consistent; server %UP%; }
""", origin={"/flaky": flaky, "/hang": hang, "/500": response(b"five hundred\n", status="500 Broken"),
             "/503": response(b"later\n", status="503 Later")})


@s.case("keep-alive to the upstream")
def kept(r):
    with r.connect() as c:
        for i in range(4):
            c.send(request("GET", f"/kept/{i}"))
            r.take(c)
            c.send(request("POST", f"/kept/{i}", body=b"b" * 20_000))
            r.take(c)


s.get("first of two is dead", "/dead-first/x", times=2)
s.get("first of two is dead, POST", "/dead-first/x", method="POST", body=b"b" * 20_000)
s.get("dead: 502", "/dead/x")
s.get("dead: error page", "/dead-page/x")
s.get("dead: named location with the body", "/dead-named/x", method="POST", body=b"b" * 20_000)
s.get("proxy_next_upstream with one upstream", "/next/500")
s.get("proxy_next_upstream: GET is tried again", "/flaky/", times=3)
s.get("proxy_next_upstream: POST is not", "/flaky/", method="POST", body=b"b", times=2)
s.get("proxy_next_upstream non_idempotent", "/flaky-any/", method="POST", body=b"b" * 20_000, times=2)
s.get("proxy_next_upstream off", "/flaky-off/", times=2)
s.get("proxy_next_upstream by status", "/status/500")
s.get("timeout: 504", "/slow/")
s.get("timeout: error page", "/slow-page/")
s.get("hash", "/hash/x")
s.get("connection refused", "/refused/")

# A subject of its own: the head has to come within the limit, so it is long.
s = Subject("late-body", "location / { proxy_pass http://%UP%; proxy_read_timeout 1s; }",
            origin={"/slow-body": lambda q, c: c.say(response(b"abcdef")[:-3]) or hang(q, c)})
s.get("timeout within the body", "/slow-body")

# ---- FastCGI, uwsgi, SCGI --------------------------------------------------------------------------------------------


def pairs(items):
    return "".join(f"{k}={v}\n" for k, v in sorted(items))


def fastcgi(rfile, wfile):
    params, body = b"", b""
    while True:
        kind, _, n, pad = struct.unpack(">xBHHBx", rfile.read(8))
        data = rfile.read(n)
        rfile.read(pad)
        if kind == 4:
            params += data
        elif kind == 5:
            if not n:
                break
            body += data
    env, at = {}, 0
    while at < len(params):
        lens = []
        for _ in (0, 1):
            n = params[at]
            at += 1
            if n & 128:
                n = (n & 127) << 24 | int.from_bytes(params[at:at + 3], "big")
                at += 3
            lens.append(n)
        env[params[at:at + lens[0]].decode()] = params[at + lens[0]:at + sum(lens)].decode()
        at += sum(lens)

    def say(data):
        for i in range(0, len(data), 30_000):
            part = data[i:i + 30_000]
            wfile.write(struct.pack(">BBHHBB", 1, 6, 1, len(part), 0, 0) + part)
    say(answer_to(env, body))
    if "stderr" in env.get("QUERY_STRING", ""):
        wfile.write(struct.pack(">BBHHBB", 1, 7, 1, 6, 0, 0) + b"oh no\n")
    wfile.write(struct.pack(">BBHHBB", 1, 6, 1, 0, 0, 0) + struct.pack(">BBHHBBIB3x", 1, 3, 1, 8, 0, 0, 0, 0))


def scgi(rfile, wfile):
    n = b""
    while not n.endswith(b":"):
        n += rfile.read(1)
    words = rfile.read(int(n[:-1]) + 1)[:-2].split(b"\0")
    env = {k.decode(): v.decode() for k, v in zip(words[::2], words[1::2])}
    wfile.write(answer_to(env, rfile.read(int(env["CONTENT_LENGTH"] or 0))))


def uwsgi(rfile, wfile):
    _, n, _ = struct.unpack("<BHB", rfile.read(4))
    block, at, words = rfile.read(n), 0, []
    while at < n:
        size = int.from_bytes(block[at:at + 2], "little")
        words.append(block[at + 2:at + 2 + size].decode())
        at += 2 + size
    env = dict(zip(words[::2], words[1::2]))
    wfile.write(answer_to(env, rfile.read(int(env.get("CONTENT_LENGTH") or 0))))


def answer_to(env, body):
    query = env.get("QUERY_STRING", "")
    if query == "status":
        return b"Status: 404 Not There\r\nContent-Type: text/plain\r\n\r\nnot there\n"
    if query == "location":
        return b"Status: 302 Found\r\nLocation: /elsewhere\r\n\r\n"
    if query == "long":
        return b"Content-Type: text/plain\r\n\r\n" + LONG
    if query == "bad":
        return b"no field at all\r\n\r\n"
    shown = pairs((k, v) for k, v in env.items() if k in ("REQUEST_METHOD", "QUERY_STRING", "CONTENT_LENGTH", "HTTP_X_CASE", "SCRIPT"))
    return b"Content-Type: text/plain\r\nX-Peer: yes\r\n\r\n" + shown.encode() + b"%d\n" % len(body)


for name, talk in (("fastcgi", fastcgi), ("uwsgi", uwsgi), ("scgi", scgi)):
    s = Subject(name, f"""
{name}_param REQUEST_METHOD $request_method; {name}_param QUERY_STRING $query_string; {name}_param CONTENT_LENGTH $content_length;
{name}_param SCRIPT $uri; {'scgi_param SCGI 1;' if name == 'scgi' else ''}
location / {{ {name}_pass %UP%; }}
location /off/ {{ {name}_pass %UP%; {name}_buffering off; }}
location /errors/ {{ {name}_pass %UP%; {name}_intercept_errors on; error_page 404 /page; }}
location = /page {{ return 404 "our page\\n"; }}
""")
    s.talk = talk
    s.get("GET", "/a", "X-Case: c")
    s.get("HEAD", "/a", method="HEAD")
    s.get("POST", "/a", method="POST", body=b"p" * 30_000)
    s.get("status", "/a?status")
    s.get("redirect", "/a?location")
    s.get("long answer", "/a?long")
    s.get("long answer, unbuffered", "/off/a?long")
    s.get("error page", "/errors/a?status")
    s.get("no fields", "/a?bad")
    if name == "fastcgi":
        s.get("stderr", "/a?stderr")
