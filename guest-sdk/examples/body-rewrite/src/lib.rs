//! Example guest: rewrites whole bodies.
