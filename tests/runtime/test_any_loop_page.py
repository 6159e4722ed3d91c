"""The page of `watch`: its blocks run as they are written, and print what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sightline.config.shipped import copy_shipped
from tests.doc_blocks import ROOT, blocks_of, run_block

PAGE = ROOT / "docs" / "manual" / "check.md"
PRINTED = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("place", [0, 1])
def test_a_block_prints_what_the_page_shows(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_shipped("examples", tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_block([block for block in blocks_of(PAGE) if block.needs is None][place])
    assert re.fullmatch(_as_pattern(_without_times(PRINTED[place])), _without_times(capsys.readouterr().out))
    assert place or (tmp_path / "watch.html").read_text().count("<h2") == 4  # the labels are drawn: a note of chance


def _as_pattern(text: str) -> str:
    """Make a pattern of what a page shows, in which a line of three dots stands for lines that are left out."""
    return re.escape(text).replace(re.escape("...\n"), r"(?:.*\n)+?")


def _without_times(text: str) -> str:
    """Leave out times, and how many relations a busy machine could ask; a block is the file `train.py`."""
    of_a_file = re.sub(r"where: docs/manual/check\.md:\d+:", "where: train.py:", text)
    return re.sub(r"\d+\.\d s\b", "T s", re.sub(r"(?s)verdict: .*?\n(?=\S)", "", of_a_file))
