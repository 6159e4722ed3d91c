"""The README can be typed in as it is written; what cannot be run, on any page, is marked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cases import run_each
from tests.doc_blocks import OTHER_PAGES, README, ROOT, TOUR, Block, blocks_of, lay_out, read_terminal, run_block
from tests.processes import launched_as_forks

NEEDS = ("DATA", "GPU", "TIME", "SHELL", "FILE", "NETWORK")
PAGES = [README, *OTHER_PAGES]


@run_each("page", PAGES)
def test_a_block_that_cannot_be_run_is_marked(page: Path) -> None:
    for block in blocks_of(page):
        for mark in block.marks:
            word, _, rest = mark.partition(" ")
            kinds = {"needs": rest.split(":")[0] in NEEDS, "tested": rest.startswith("with: "), "exit": True}
            assert kinds.get(word, False), f"{block.place}: '{mark}' is not a mark (tests/doc_blocks.py)"
        if block.needs is None:
            assert block.unrunnable() == [], f"{block.place}: mark it by <!-- needs DATA: ... --> or alike"
        if block.language == "sh" and block.needs is None:
            verbs = {words[1] for words in block.commands()}
            assert block.appended.keys() <= verbs, f"{block.place}: its mark names verbs that are not in it"


def test_a_block_without_its_mark_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "manual" / "train.md"
    whole = [
        Block(page, 1, "sh", text, ()) for text in ("sightline train CONFIG\n", "torchrun x\n", "sightline list\n")
    ]
    assert [bool(block.unrunnable()) for block in whole] == [True, True, False]


@pytest.mark.processes
@pytest.mark.parametrize(("page", "num_blocks", "run"), [(README, 3, "tour"), (TOUR, 7, "tour-again")])
def test_the_first_pages_run_in_the_order_of_their_blocks(
    page: Path, num_blocks: int, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainings of the README begin with their checks, as typed; those of the second page without."""
    if page != README:
        monkeypatch.setattr("sightline.workbench.check.suite.run_quick", lambda *given, **named: [])
    lay_out(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    blocks = [block for block in blocks_of(page) if block.needs is None]
    assert len(blocks) >= num_blocks
    before = {name: value for name, value in os.environ.items() if name.startswith(("SIGHTLINE", "TORCH"))}
    with launched_as_forks(tmp_path / "ranks.log"):
        monkeypatch.chdir(tmp_path)
        printed = [run_block(block) for block in blocks]
    after = {name: value for name, value in os.environ.items() if name.startswith(("SIGHTLINE", "TORCH"))}
    assert after == before  # one block launches two processes; those that are started later are not of that run
    assert (tmp_path / "runs" / run / "final.json").exists()
    if page == README:
        lines = [line for text in printed for line in text.splitlines() if not line.startswith("check: ")]
        shown = read_terminal(ROOT / "docs" / "pictures" / "check.svg")
        assert shown in " ".join(" ".join(lines).split()), "run docs/pictures/make.py docs/pictures/check.svg"
