"""`python -m benchmarks`: time implementations of the same computation against each other, as ratios."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the cases that the command line names."""
    # Read when torch is first imported, as in sightline/cli.py
    # (docs/inside/decisions/runs.md#threads-that-wait-sleep).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from benchmarks.command import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
