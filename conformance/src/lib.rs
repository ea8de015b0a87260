//! Checks that a guest or a host keeps the rules of the proxy_golang ABI.
