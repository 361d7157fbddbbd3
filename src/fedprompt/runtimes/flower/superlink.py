"""Flower's SuperLink with a wider tolerance of clocks: `python -m fedprompt.runtimes.flower.superlink [ARGUMENTS]`.

Flower refuses a site whose clock is five seconds ahead, without naming the clock. Here such a site connects, and the
preflight compares its clock with the deployment's `clock_skew`, and names the site and the seconds.
"""

from __future__ import annotations

import sys

from flwr.common import constant

TOLERANCE = 86_400  # seconds


def main() -> int | None:
    """Run the SuperLink with the arguments of this process."""
    constant.SYSTEM_TIME_TOLERANCE = TOLERANCE
    from flwr.superlink.cli import flower_superlink  # reads the constant while it is imported

    code: int | None = flower_superlink()
    return code


if __name__ == "__main__":
    sys.exit(main())
