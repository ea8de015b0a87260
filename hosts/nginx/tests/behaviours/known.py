# SPDX-License-Identifier: Apache-2.0
"""Differences that stay, each with its reason. harmless.py is red where one of them does not come any more, but for those
that depend on who is first."""

BODIES = ("stream", "suspend", "ring")  # Variants whose guests see bodies,
WAITING = ("suspend", "ring")  # and that suspend messages;
SUSPENDED = ("wait", *WAITING)  # those that suspend requests at least.

RANGES = """nginx cuts several ranges out of one buffer only, and what a guest has seen comes in many: the whole is sent, as if
no range had been asked for"""
HALF_CLOSED = "while a request is suspended, a client that closes its half is taken for gone, as nginx does while an upstream works"
MALFORMED = "of a response whose chunks turn out to be malformed while a guest has its head, nothing is sent"

# What, as harmless.py names it: the variants, and the reason.
LIMITS = {
    "ranges: range: two": (BODIES, RANGES),
    "ranges: range: three with suffix": (BODIES, RANGES),
    "ranges: range: overlapping": (BODIES, RANGES),
    "ranges: range: many": (BODIES, RANGES),
    "ranges: range: two of a large file": (BODIES, RANGES),
    "access: ranges.compare": (BODIES, RANGES),
    "messages: client half-closes": (SUSPENDED, HALF_CLOSED),
    "access: messages.compare": (SUSPENDED, HALF_CLOSED),
    "access: upgrade.compare": (SUSPENDED, HALF_CLOSED),
    "access: proxy.compare": (WAITING, MALFORMED),
}

RACES = (HALF_CLOSED, MALFORMED)


def expected(variant):
    """what -> reason."""
    return {what: reason for what, (variants, reason) in LIMITS.items() if variant in variants}
