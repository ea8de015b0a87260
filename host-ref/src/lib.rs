//! The reference host of proxy_golang.
