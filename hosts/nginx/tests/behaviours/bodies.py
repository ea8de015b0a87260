# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests, through nginx to an upstream that tells their length and checksum."""

from harness import request

from . import FILES, Subject, chunked

BIG = FILES["big.bin"]

s = Subject("bodies", """
client_max_body_size 4m; client_body_buffer_size 8k; proxy_http_version 1.1; proxy_set_header Connection "";
location /up/ { proxy_pass http://%UP%:/; }
location /off/ { proxy_request_buffering off; proxy_pass http://%UP%:/; }
location /file/ { client_body_in_file_only clean; proxy_pass http://%UP%:/; }
location /single/ { client_body_in_single_buffer on; client_body_buffer_size 2m; proxy_pass http://%UP%:/; }
location /none/ { proxy_pass_request_body off; proxy_set_header Content-Length ""; proxy_pass http://%UP%:/; }
location /set/ { proxy_set_body "<$request_body>"; proxy_pass http://%UP%:/; }
location /method/ { proxy_method PUT; proxy_pass http://%UP%:/; }
location /logged/ { add_header X-Body "$request_body" always; proxy_pass http://%UP%:/; }
location /length/ { add_header X-Length "$request_length|$content_length" always; proxy_pass http://%UP%:/; }
location /limit/ { client_max_body_size 1000; proxy_pass http://%UP%:/; }
location /limit-page/ { client_max_body_size 1000; error_page 413 /too-large; proxy_pass http://%UP%:/; }
location = /too-large { return 413 "too large for us\\n"; }
location /no-limit/ { client_max_body_size 0; proxy_pass http://%UP%:/; }
location /return { return 200 "returned\\n"; }
location /static/ { alias %D%/html/; }
location /405/ { alias %D%/html/; error_page 405 =200 /up/405; }
""")
for place in ("up", "off", "file", "single", "none", "set", "method", "logged", "length"):
    s.get(f"{place}: small body", f"/{place}/", method="POST", body=b"a small body")
for place in ("up", "off", "file", "single", "none", "method"):
    s.get(f"{place}: large body", f"/{place}/", method="POST", body=BIG)
s.get("no body", "/up/", method="POST", body=b"")
s.get("no body, unbuffered", "/off/", method="POST", body=b"")
s.get("GET with a body", "/up/", method="GET", body=b"of a GET")
s.get("DELETE with a body", "/up/", method="DELETE", body=b"of a DELETE")
s.get("exactly the buffer", "/up/", method="POST", body=BIG[:8192])
s.get("one more than the buffer", "/up/", method="POST", body=BIG[:8193])
s.get("body over the limit", "/limit/", method="POST", body=b"x" * 1001)
s.get("body at the limit", "/limit/", method="POST", body=b"x" * 1000)
s.get("body over the limit with an error page", "/limit-page/", method="POST", body=b"x" * 1001)
s.get("no limit", "/no-limit/", method="POST", body=BIG * 5)
s.get("body nobody reads", "/return", method="POST", body=b"x" * 3000)
s.get("large body nobody reads", "/return", method="POST", body=BIG)
s.get("body to a file that is no script", "/static/small.txt", method="POST", body=b"x" * 3000)
s.get("body passed on by an error page", "/405/small.txt", method="POST", body=b"x" * 30_000)


def stream(path, size=400_000, piece=40_000):
    def run(r):
        with r.connect() as c:
            c.send(request("POST", path, ("Transfer-Encoding: chunked", "Connection: close")))
            for at in range(0, size, piece):
                part = BIG[at:at + piece]
                c.send(b"%x\r\n%s\r\n" % (len(part), part))
            c.send(b"0\r\n\r\n")
            r.take_all(c)
    return run


s.add("chunks to the upstream", stream("/up/"))
s.add("chunks to the upstream, unbuffered", stream("/off/"))
s.add("chunks to a file", stream("/file/"))
s.raw("chunks over the limit", request("POST", "/limit/", ("Transfer-Encoding: chunked", "Connection: close")) + chunked(*[b"x" * 100] * 20))


@s.case("bodies one after the other on one connection")
def several(r):
    with r.connect() as c:
        for n in (1, 10_000, 0, 100_000, 8192):
            c.send(request("POST", "/up/", body=BIG[:n]))
            r.take(c)
            c.send(request("POST", "/off/", body=BIG[:n]))
            r.take(c)
            c.send(request("POST", "/return", body=BIG[:n]))
            r.take(c)
