"""What stands for the files of users is as it was made: no script, formatter or renaming has touched it."""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).parent
LIST = HERE / "frozen.txt"
"""`sha256sum` of each file of `old_plugins`, `old_prepared` and `old_runs` but their programs; `cd tests` to check."""


def test_no_frozen_file_was_touched() -> None:
    lines = [line.split(maxsplit=1) for line in LIST.read_text().splitlines()]
    changed = [
        name
        for digest, name in lines
        if not (HERE / name).is_file() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest
    ]
    assert len(lines) > 200
    assert changed == [], "put them back: git checkout; the package has to go on reading them"
