# SPDX-License-Identifier: Apache-2.0
"""Limits and who may come in: limit_req, limit_conn, access, basic authentication, auth_request, secure links."""

import base64
import hashlib

from harness import request

from . import Subject, response

GOOD = "Authorization: Basic " + base64.b64encode(b"user:secret").decode()
BAD = "Authorization: Basic " + base64.b64encode(b"user:wrong").decode()

s = Subject("access", """
auth_basic_user_file %D%/users;
location /denied/ { alias %D%/html/; deny all; }
location /allowed/ { alias %D%/html/; allow unix:; deny all; }
location /page/ { deny all; error_page 403 /denied-page; }
location = /denied-page { allow all; return 403 "not you\\n"; }
location /basic/ { alias %D%/html/; auth_basic realm; }
location /basic-up/ { auth_basic realm; proxy_pass http://%UP%; }
location /any/ { alias %D%/html/; satisfy any; deny all; auth_basic realm; }
location /all/ { alias %D%/html/; satisfy all; allow all; auth_basic realm; }
location /any-allowed/ { alias %D%/html/; satisfy any; allow all; auth_basic realm; }
location /request/ { auth_request /check; auth_request_set $who $upstream_http_x_who; proxy_set_header X-Who $who; proxy_pass http://%UP%; }
location /request-file/ { auth_request /check; alias %D%/html/; }
location /request-any/ { satisfy any; deny all; auth_request /check; alias %D%/html/; }
location /request-error/ { auth_request /check; error_page 401 = @login; alias %D%/html/; }
location @login { return 302 /login; }
location = /check { internal; proxy_pass http://%UP%/verdict/$arg_as; proxy_pass_request_body off; proxy_set_header Content-Length ""; proxy_set_header X-Original $request_uri; }
location /post-limit/ { alias %D%/html/; limit_except GET { deny all; } }
location /referer/ { alias %D%/html/; valid_referers none e.example; if ($invalid_referer) { return 403; } }
""", needs=("http_auth_request_module",), origin={
    "/verdict/": response(b"", "X-Who: nobody"),
    "/verdict/friend": response(b"", "X-Who: friend"),
    "/verdict/stranger": response(b"who?", 'WWW-Authenticate: Basic realm="check"', status="401 No"),
    "/verdict/enemy": response(b"never", status="403 No"),
    "/verdict/broken": response(b"", status="500 Broken"),
    "/verdict/gone": b"",
})
s.get("deny", "/denied/small.txt")
s.get("allow", "/allowed/small.txt")
s.get("deny with an error page", "/page/x")
s.get("deny a POST", "/denied/small.txt", method="POST", body=b"x" * 20_000)
for name, fields in (("none", ()), ("good", (GOOD,)), ("bad", (BAD,)), ("garbage", ("Authorization: Basic !!",))):
    s.get(f"auth_basic: {name}", "/basic/small.txt", *fields)
s.get("auth_basic: upstream sees the user", "/basic-up/x", GOOD)
s.get("auth_basic: POST refused", "/basic-up/x", method="POST", body=b"x" * 20_000)
s.get("satisfy any: neither", "/any/small.txt")
s.get("satisfy any: password", "/any/small.txt", GOOD)
s.get("satisfy any: address", "/any-allowed/small.txt")
s.get("satisfy all: only the address", "/all/small.txt")
s.get("satisfy all: both", "/all/small.txt", GOOD)
for who in ("", "friend", "stranger", "enemy", "broken", "gone"):
    s.get(f"auth_request: {who or 'nobody'}", f"/request/x?as={who}")
s.get("auth_request: file", "/request-file/small.txt?as=friend")
s.get("auth_request: POST", "/request/x?as=friend", method="POST", body=b"x" * 20_000)
s.get("auth_request: POST refused", "/request/x?as=enemy", method="POST", body=b"x" * 20_000)
s.get("auth_request: satisfy any", "/request-any/small.txt?as=friend")
s.get("auth_request: satisfy any, refused", "/request-any/small.txt?as=enemy")
s.get("auth_request: error page", "/request-error/small.txt?as=stranger")
s.get("auth_request: range", "/request-file/text.txt?as=friend", "Range: bytes=3-9")
s.get("limit_except: GET", "/post-limit/small.txt")
s.get("limit_except: POST", "/post-limit/small.txt", method="POST", body=b"x")
s.get("referer: none", "/referer/small.txt")
s.get("referer: other", "/referer/small.txt", "Referer: http://other/")

s = Subject("limits", """
limit_conn_status 429; limit_conn_log_level error;
location /req/ { limit_req zone=req; alias %D%/html/; }
location /req-burst/ { limit_req zone=burst burst=2 nodelay; limit_req_status 429; alias %D%/html/; }
location /req-delay/ { limit_req zone=delay burst=5; alias %D%/html/; }
location /req-dry/ { limit_req zone=req; limit_req_dry_run on; add_header X-Limit $limit_req_status; alias %D%/html/; }
location /conn/ { limit_conn conn 1; proxy_pass http://%UP%:/; }
""", """
limit_req_zone $server_name zone=req:1m rate=1r/m; limit_req_zone $server_name zone=burst:1m rate=1r/m;
limit_req_zone $server_name zone=delay:1m rate=20r/s; limit_conn_zone $server_name zone=conn:1m;
""")
s.get("limit_req", "/req/small.txt", times=3)
s.get("limit_req: burst", "/req-burst/small.txt", times=5)
s.get("limit_req: delay", "/req-delay/small.txt", times=4)
s.get("limit_req: dry run", "/req-dry/small.txt", times=2)


def slow(req, connection):
    connection.server.asked.set()
    connection.server.go.wait(20)
    connection.say(response(b"slow\n"))
    return False


s.origin["/slow"] = slow


@s.case("limit_conn")
def limit_conn(r):
    with r.connect() as first:
        first.send(request("GET", "/conn/slow", ("Connection: close",)))
        r.upstream.asked.wait(20)
        r.ask("/conn/second")
        r.upstream.go.set()
        r.take_all(first)
    r.ask("/conn/third")

s = Subject("secure-link", """
secure_link $arg_md5,$arg_expires; secure_link_md5 "$secure_link_expires$uri secret";
location / { add_header X-Link "[$secure_link]"; if ($secure_link = "0") { return 410; } }
""", needs=("http_secure_link_module",))


def link(path, expires):
    md5 = base64.urlsafe_b64encode(hashlib.md5(f"{expires}{path} secret".encode()).digest()).decode().rstrip("=")
    return f"{path}?md5={md5}&expires={expires}"


s.get("secure_link: bad", "/small.txt?md5=x&expires=2147483647")
s.get("secure_link: good", link("/small.txt", 2147483647))
s.get("secure_link: expired", link("/small.txt", 1000))
