# SPDX-License-Identifier: Apache-2.0
"""Differences that stay, each with its reason. harmless.py is red where one of them does not come any more, but for those
that depend on who is first."""

BODIES = ("stream", "suspend", "ring")  # Variants whose guests see bodies,
WAITING = ("suspend", "ring")  # and that suspend messages.

RANGES = """nginx cuts several ranges out of one buffer only, and what a guest has seen comes in many: the whole is sent, as if
no range had been asked for"""
HALF_CLOSED = "while a request is suspended, a client that closes its half is taken for gone, as nginx does while an upstream works"
BROKEN = """a response that breaks off while a guest has its head or its last bytes loses these; if nothing was sent, the
client gets 502 and not the part"""

# What, as harmless.py names it: the variants, and the reason.
LIMITS = {
    "ranges: range: two": (BODIES, RANGES),
    "ranges: range: three with suffix": (BODIES, RANGES),
    "ranges: range: overlapping": (BODIES, RANGES),
    "ranges: range: many": (BODIES, RANGES),
    "ranges: range: two of a large file": (BODIES, RANGES),
    "access: ranges.compare": (BODIES, RANGES),
    "messages: client half-closes": (WAITING, HALF_CLOSED),
    "access: messages.compare": (WAITING, HALF_CLOSED),
    "access: upgrade.compare": (WAITING, HALF_CLOSED),
    **{f"proxy: {how}: {what}": (WAITING, BROKEN) for how in ("upstream", "1.1", "unbuffered") for what in ("cut", "chunked-cut")},
    "proxy: upstream: two-lengths": (WAITING, BROKEN),
    "proxy: small buffers: cut": (WAITING, BROKEN),
    "http2: h2: upstream: cut": (WAITING, BROKEN),
    "access: proxy.compare": (WAITING, BROKEN),
    "access: http2.compare": (WAITING, BROKEN),
}

RACES = (HALF_CLOSED, BROKEN)


def expected(variant):
    """what -> reason."""
    return {what: reason for what, (variants, reason) in LIMITS.items() if variant in variants}
