# SPDX-License-Identifier: Apache-2.0
"""Differences that stay, each with its reason. (variant, what) -> reason; `what` as harmless.py names it."""

BODIES = ("stream", "suspend", "ring")  # Variants whose guests see bodies.

LIMITS = {
}


def expected(version):
    """Those of this nginx."""
    del version
    return {(variant, what): reason for what, (variants, reason) in LIMITS.items() for variant in variants}
