//! The layer `libpxg_layer.so`: loaded by any host in place of a guest, it loads the real one and checks both sides.
#![deny(unsafe_code)]
