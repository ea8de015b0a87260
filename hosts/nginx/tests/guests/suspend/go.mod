module github.com/proxy-golang/proxy_golang/hosts/nginx/tests/guests/suspend

go 1.24

require github.com/proxy-golang/proxy_golang/guest-sdk/go v0.0.0

replace github.com/proxy-golang/proxy_golang/guest-sdk/go => ../../../../../guest-sdk/go
