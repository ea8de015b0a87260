# SPDX-License-Identifier: Apache-2.0
"""The grammar of requests and the life of connections."""

from harness import request

from . import Subject, chunked

s = Subject("messages", """
client_header_buffer_size 1k; large_client_header_buffers 2 2k; client_body_buffer_size 1k;
location / { }
location /up/ { proxy_pass http://%UP%; }
location /underscores/ { proxy_pass http://%UP%; }
location /unbuffered/ { proxy_request_buffering off; proxy_http_version 1.1; proxy_pass http://%UP%; }
location /ok { return 200 ok; }
""")
G = b"GET /small.txt HTTP/1.1\r\nHost: e\r\nConnection: close\r\n"
P = b"POST /up/ HTTP/1.1\r\nHost: e\r\nConnection: close\r\n"
CHUNKED = P + b"Transfer-Encoding: chunked\r\n\r\n"
OFF = CHUNKED.replace(b"/up/", b"/unbuffered/")
for name, data in {
    "HTTP/1.0": b"GET /small.txt HTTP/1.0\r\n\r\n",
    "HTTP/1.0: keep-alive": b"GET /small.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /small.txt HTTP/1.0\r\n\r\n",
    "HTTP/0.9": b"GET /small.txt\r\n",
    "HTTP/0.9 of a missing file": b"GET /none\r\n",
    "HTTP/1.2": b"GET /small.txt HTTP/1.2\r\nHost: e\r\nConnection: close\r\n\r\n",
    "HTTP/2.0": b"GET /small.txt HTTP/2.0\r\nHost: e\r\n\r\n",
    "lower-case protocol": b"GET /small.txt http/1.1\r\nHost: e\r\n\r\n",
    "lines that end in LF": G.replace(b"\r\n", b"\n") + b"\n",
    "empty lines before": b"\r\n\r\n" + G + b"\r\n",
    "absolute form": b"GET http://e/small.txt HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: e\r\n\r\n",
    "CONNECT": b"CONNECT e:443 HTTP/1.1\r\nHost: e\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": G + b"Host: f\r\n\r\n",
    "empty Host": b"GET /small.txt HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
    "Host with a slash": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with a port": b"GET /small.txt HTTP/1.1\r\nHost: e:8080\r\nConnection: close\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "spaces in the target": b"GET /a b HTTP/1.1\r\nHost: e\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: e\r\n\r\n",
    "control byte in the target": b"GET /a\x01 HTTP/1.1\r\nHost: e\r\n\r\n",
    "high byte in the target": b"GET /\xff HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n",
    "field without a colon": G + b"nonsense\r\n\r\n",
    "field name with a space": G + b"a b: c\r\n\r\n",
    "space before the colon": G + b"a : c\r\n\r\n",
    "folded field": G + b"a: b\r\n c\r\n\r\n",
    "NUL in a value": G + b"a: b\x00c\r\n\r\n",
    "field without a name": G + b": c\r\n\r\n",
    "field with an underscore": P.replace(b"/up/", b"/underscores/") + b"a_b: c\r\nContent-Length: 0\r\n\r\n",
    "field without a value": P + b"X-Empty:\r\nContent-Length: 0\r\n\r\n",
    "fields twice and in odd case": P + b"x-CASE: 1\r\nX-Case: 2\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Length: 0\r\n\r\n",
    "value with high bytes": P + b"X-High: \xc3\xa4\xff\r\nContent-Length: 0\r\n\r\n",
    "target too long": b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: e\r\n\r\n",
    "field too long": G + b"X-Long: " + b"a" * 3000 + b"\r\n\r\n",
    "too many fields": G + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 100) for i in range(60)) + b"\r\n",
    "fields in a large buffer": P + b"X-Long: " + b"a" * 1500 + b"\r\nContent-Length: 0\r\n\r\n",
    "POST without a length": b"POST /up/ HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n",
    "PUT without a length to a file": b"PUT /small.txt HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n",
    "negative length": P + b"Content-Length: -1\r\n\r\n",
    "length that is no number": P + b"Content-Length: 1x\r\n\r\na",
    "length too large": P + b"Content-Length: 99999999999999999999\r\n\r\na",
    "two lengths": P + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "list of lengths": P + b"Content-Length: 1, 1\r\n\r\na",
    "length and coding": P + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two codings": P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding unknown": P + b"Transfer-Encoding: gzip\r\n\r\n",
    "coding gzip, chunked": P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"POST /up/ HTTP/1.0\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks": CHUNKED + chunked(b"one", b"two" * 700, b"three"),
    "chunks: none": CHUNKED + chunked(),
    "chunks: trailers": CHUNKED + chunked(b"one", trailers=b"X-Trailer: 1\r\n"),
    "chunks: extension": CHUNKED + b"3;ext=\"x\"\r\none\r\n0;last\r\n\r\n",
    "chunks: upper-case size": CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n",
    "chunks: size that is no number": CHUNKED + b"zz\r\none\r\n0\r\n\r\n",
    "chunks: size too large": CHUNKED + b"ffffffffffffffffff\r\n",
    "chunks: no CRLF after the data": CHUNKED + b"3\r\none3\r\ntwo\r\n0\r\n\r\n",
    "chunks: LF for CRLF": CHUNKED + b"3\none\n0\n\n",
    "unbuffered: chunks": OFF + chunked(b"one", b"two" * 700, b"three"),
    "unbuffered: bad chunk": OFF + b"3\r\none\r\nzz\r\n",
    "unbuffered: length": b"POST /unbuffered/ HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: 5000\r\n\r\n" + b"u" * 5000,
}.items():
    s.raw(name, data, methods=[data.split(b" ")[0].decode("latin1")])

s.raw("head in pieces", b"GET /sm", b"all.txt HTTP/1", b".1\r\nHo", b"st: e\r\nConnection: close\r\n", b"\r\n")
s.raw("body in pieces", P + b"Content-Length: 9\r\n\r\n", b"abc", b"def", b"ghi")
s.raw("chunks in pieces", CHUNKED, b"3\r", b"\none", b"\r\n", b"3\r\ntwo\r\n", b"0\r\n", b"\r\n")
s.raw("pipelined", b"GET /small.txt HTTP/1.1\r\nHost: e\r\n\r\n" * 5 + G + b"\r\n")
s.raw("pipelined through the upstream", b"GET /up/a HTTP/1.1\r\nHost: e\r\n\r\nGET /up/b HTTP/1.1\r\nHost: e\r\n\r\n" + P +
      b"Content-Length: 3\r\n\r\nend")
s.raw("pipelined behind a body", b"POST /up/ HTTP/1.1\r\nHost: e\r\nContent-Length: 3\r\n\r\nabc" + G + b"\r\n")
s.raw("pipelined behind a body that nobody reads", b"POST /ok HTTP/1.1\r\nHost: e\r\nContent-Length: 3\r\n\r\nabc" + G + b"\r\n")
s.raw("pipelined behind chunks that nobody reads", b"POST /ok HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n" +
      chunked(b"abc") + G + b"\r\n")
s.raw("pipelined behind an error", b"GET /none HTTP/1.1\r\nHost: e\r\n\r\n" + G + b"\r\n")
s.raw("pipelined, HEAD among them", b"GET /small.txt HTTP/1.1\r\nHost: e\r\n\r\nHEAD /small.txt HTTP/1.1\r\nHost: e\r\n\r\n" + G + b"\r\n",
      methods=["GET", "HEAD", "GET"])
s.raw("smuggling: a request as the body", P + b"Content-Length: 38\r\n\r\nGET /up/smuggled HTTP/1.1\r\nHost: e\r\n\r\n")
s.raw("client half-closes", b"GET /small.txt HTTP/1.1\r\nHost: e\r\n\r\n", close=True)
s.raw("client half-closes within the head", b"GET /small.txt HTTP/1.1\r\nHo", close=True)
s.raw("client half-closes within the body", P + b"Content-Length: 10\r\n\r\nabc", close=True)

s = Subject("connections", """
keepalive_requests 3; keepalive_timeout 20s 15s;
location / { }
location /body/ { client_body_timeout 300ms; proxy_pass http://%UP%:/; }
location /up/ { proxy_pass http://%UP%:/; }
location /never { keepalive_timeout 0; return 200 never; }
location /old { keepalive_disable safari; return 200 old; }
location /drop { return 444; }
location /lingers { lingering_close always; return 200 lingers; }
location /late { error_page 408 /late408; client_body_timeout 300ms; proxy_pass http://%UP%:/; }
location = /late408 { return 200 timed-out; }
""")


@s.case("keepalive_requests")
def keepalive_requests(r):
    with r.connect() as c:
        for _ in range(3):
            c.send(request("GET", "/small.txt"))
            r.take(c)
        r.take_all(c)


s.raw("keepalive_timeout 0", b"GET /never HTTP/1.1\r\nHost: e\r\n\r\n")
s.raw("return 444", b"GET /drop HTTP/1.1\r\nHost: e\r\n\r\n")
s.raw("lingering_close", b"POST /lingers HTTP/1.1\r\nHost: e\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabc", b"def")
s.raw("client_body_timeout", b"POST /body/ HTTP/1.1\r\nHost: e\r\nContent-Length: 6\r\n\r\nabc")
s.raw("client_body_timeout with an error page", b"POST /late HTTP/1.1\r\nHost: e\r\nContent-Length: 6\r\n\r\nabc")


@s.case("client goes away while the upstream thinks: 499")
def gone(r):
    with r.connect() as c:
        c.send(request("GET", "/up/slow?gone", ("X-Case: gone",)))
        r.upstream.asked.wait(20)
    r.upstream.asked.clear()


def slow(req, connection):
    connection.server.asked.set()
    connection.rfile.read(1)  # Until nginx hangs up.
    return False


s.origin["/slow"] = slow

# A subject of its own: whoever does not send the first bytes in time is another behaviour, so the limit is long.
s = Subject("late-head", "client_header_timeout 1s; location / { }")
s.raw("client_header_timeout", b"GET / HTTP/1.1\r\nHo")

s = Subject("expect", """
location /up/ { proxy_pass http://%UP%:/; }
location /off/ { proxy_request_buffering off; proxy_http_version 1.1; proxy_pass http://%UP%:/; }
location /small/ { client_max_body_size 10; proxy_pass http://%UP%:/; }
location /ok { return 200 ok; }
""")


def expecting(path, body=b"expected", version="1.1"):
    def run(r):
        with r.connect() as c:
            c.send(request("POST", path, ("Expect: 100-continue", f"Content-Length: {len(body)}", "Connection: close"),
                           protocol=f"HTTP/{version}"))
            if version == "1.1":
                a = r.take(c)
                if a and a.status == 100:
                    c.send(body)
                else:
                    c.socket.shutdown(1)  # So that nginx does not wait for the body.
            else:
                c.send(body)
            r.take_all(c)
    return run


s.add("Expect: 100-continue", expecting("/up/"))
s.add("Expect: 100-continue, unbuffered", expecting("/off/"))
s.add("Expect: 100-continue of HTTP/1.0", expecting("/up/", version="1.0"))
s.add("Expect: 100-continue, body too large", expecting("/small/", b"x" * 100))
s.add("Expect: 100-continue, body not wanted", expecting("/ok"))
s.get("Expect: something else", "/up/", "Expect: more", method="POST", body=b"x")
