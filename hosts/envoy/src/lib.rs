//! Runs `proxy_golang` guests inside a stock Envoy: a dynamic module that drives them through the reference engine.
#![deny(unsafe_code)]
