# SPDX-License-Identifier: Apache-2.0
"""proxy_cache and slice."""

import threading

from harness import request

from . import FILES, Subject, echo, response

LONG = FILES["big.bin"]


def counted(body, *fields, status="200 OK"):
    """An answer that tells how often it was asked for."""
    def answer(req, connection):
        n = connection.server.counts = getattr(connection.server, "counts", {})
        n[req.path] = n.get(req.path, 0) + 1
        connection.say(response(body + b" %d\n" % n[req.path], *fields, f"X-Count: {n[req.path]}", status=status))
        return False
    return answer


def conditional(req, connection):
    if req.get("if-none-match") == ['"v1"']:
        connection.say(response(status="304 Not Modified", length=False).replace(b"\r\n\r\n", b'\r\nETag: "v1"\r\nX-Fresh: 304\r\n\r\n'))
        return False
    return counted(b"conditional", 'ETag: "v1"', "Cache-Control: max-age=0")(req, connection)


def failing(req, connection):
    n = connection.server.counts = getattr(connection.server, "counts", {})
    n[req.path] = n.get(req.path, 0) + 1
    if n[req.path] > 1:
        connection.say(response(b"broken\n", status="500 Broken"))
        return False
    connection.say(response(b"worked once\n", "Cache-Control: max-age=0"))
    return False


def ranged(req, connection):
    got = req.get("range")
    if not got:
        connection.say(response(LONG, 'ETag: "sliced"'))
        return False
    first, _, last = got[0].removeprefix("bytes=").partition("-")
    first, last = int(first), min(int(last), len(LONG) - 1)
    if first >= len(LONG):
        connection.say(response(b"", f"Content-Range: bytes */{len(LONG)}", status="416 Range"))
        return False
    connection.say(response(LONG[first:last + 1], f"Content-Range: bytes {first}-{last}/{len(LONG)}", 'ETag: "sliced"',
                            status="206 Partial Content"))
    return False


s = Subject("cache", """
proxy_cache cache; proxy_cache_key $uri$is_args$args; add_header X-Cache $upstream_cache_status always;
proxy_cache_valid 200 1h; proxy_cache_valid 404 1h; proxy_cache_valid 301 1h;
location / { proxy_pass http://%UP%; }
location /bypass { proxy_pass http://%UP%; proxy_cache_bypass $arg_bypass; proxy_no_cache $arg_no; proxy_cache_key $uri; }
location /stale { proxy_pass http://%UP%; proxy_cache_valid 0; proxy_cache_use_stale error timeout http_500 updating; }
location /conditional { proxy_pass http://%UP%; proxy_cache_valid 0; proxy_cache_revalidate on; }
location /min-uses { proxy_pass http://%UP%; proxy_cache_min_uses 2; }
location /methods { proxy_pass http://%UP%; proxy_cache_methods GET POST; }
location /lock { proxy_pass http://%UP%; proxy_cache_lock on; }
location /head-off { proxy_pass http://%UP%; proxy_cache_convert_head off; proxy_cache_key $request_method$uri; }
location /ignore { proxy_pass http://%UP%; proxy_ignore_headers Cache-Control Set-Cookie Vary Expires; }
location /background { proxy_pass http://%UP%; proxy_cache_valid 0; proxy_cache_use_stale updating; proxy_cache_background_update on; }
location /sliced { slice 100k; proxy_set_header Range $slice_range; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 1h; proxy_http_version 1.1; proxy_pass http://%UP%; }
""", "proxy_cache_path %D%/temp/cache keys_zone=cache:1m levels=1:2 use_temp_path=off;",
            needs=("http_slice_module",),
            origin={
    "/plain": counted(b"plain", "Content-Type: text/plain"),
    "/missing": counted(b"missing", status="404 Not Found"),
    "/moved": counted(b"moved", "Location: /plain", status="301 Moved"),
    "/private": counted(b"private", "Cache-Control: private"),
    "/no-store": counted(b"no-store", "Cache-Control: no-store"),
    "/expired": counted(b"expired", "Expires: Thu, 24 Sep 1970 04:53:20 GMT"),
    "/accel-expires": counted(b"accel", "X-Accel-Expires: 0"),
    "/cookie": counted(b"cookie", "Set-Cookie: a=b"),
    "/vary": counted(b"vary", "Vary: Accept-Language"),
    "/vary-star": counted(b"vary", "Vary: *"),
    "/long": response(LONG, 'ETag: "long"', "Last-Modified: Thu, 24 Sep 1970 04:53:20 GMT"),
    "/bypass": counted(b"bypass"), "/min-uses": counted(b"min"), "/methods": counted(b"methods"),
    "/head-off": counted(b"head"), "/ignore": counted(b"ignored", "Cache-Control: private", "Set-Cookie: a=b"),
    "/conditional": conditional, "/stale": failing, "/sliced": ranged, "/sliced-whole": ranged,
    "/background": response(b"background\n", "Cache-Control: max-age=0"),
    "/lock": lambda q, c: echo(q, c),
})
for path in ("plain", "missing", "moved", "private", "no-store", "expired", "accel-expires", "cookie", "vary-star", "min-uses", "ignore"):
    s.get(f"cache: {path}", f"/{path}", times=3)


@s.case("cache: Vary")
def vary(r):
    for language in ("de", "en", "de", "en"):
        r.ask("/vary", f"Accept-Language: {language}")


@s.case("cache: a large answer, then ranges, conditions and HEAD of it")
def large(r):
    r.ask("/long")
    r.ask("/long")
    r.ask("/long", "Range: bytes=100-199")
    r.ask("/long", "Range: bytes=100-199,300-399")
    r.ask("/long", 'If-None-Match: "long"')
    r.ask("/long", method="HEAD")


s.get("cache: HEAD first", "/plain?head", method="HEAD", times=2)
s.get("cache: HEAD not converted", "/head-off", method="HEAD", times=2)
s.get("cache: POST is not", "/plain?post", method="POST", body=b"x", times=2)
s.get("cache: POST where it is", "/methods", method="POST", body=b"x", times=2)


@s.case("cache: bypass and no_cache")
def bypass(r):
    for query in ("?no=1", "", "", "?bypass=1", ""):
        r.ask("/bypass" + query)


s.get("cache: revalidation", "/conditional", times=3)
s.get("cache: stale on 500", "/stale", times=3)
s.get("cache: background update", "/background", times=2)
s.get("slice", "/sliced")
s.get("slice: again, from the cache", "/sliced")
s.get("slice: range", "/sliced", "Range: bytes=150000-350000")


@s.case("cache: lock")
def lock(r):
    got = []

    def one():
        with r.connect() as c:
            c.send(request("GET", "/lock", ("Connection: close",)))
            a = c.answer()
            got.append((a.status, a.get("x-turn"), a.body))
    threads = [threading.Thread(target=one) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    r.note(len(set(map(str, got))), got[0])
