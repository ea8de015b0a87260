module github.com/proxy-golang/proxy_golang/guest-sdk/go

go 1.24
