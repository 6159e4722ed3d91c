"""Entry point of `sightline` and of `python -m sightline`, which launchers use."""

from __future__ import annotations

import sys

from sightline.contract.errors import MissingExtraError, assert_workbench_installed


def main() -> None:
    """Run the command line; without the packages of the extra `workbench`, exit with one line and code 2."""
    try:
        assert_workbench_installed("the command sightline")
    except MissingExtraError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    from sightline.cli import main as run

    run()


if __name__ == "__main__":
    main()
