"""The one check of every test of a broken file: an error of one line that is led by the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.contract.errors import DataError
from sightline.store.files.cloud_files import read_cloud


def refused(path: Path, *words: str, read: Callable[[Path], object] = read_cloud) -> None:
    """Reading the file is refused in a printable line, led by its path, with all these words."""
    with pytest.raises(DataError) as caught:
        read(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert told.isprintable()
    assert len(told) < len(str(path)) + 400
    for word in words:
        assert re.search(word, told), told
