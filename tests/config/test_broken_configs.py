"""Every config of broken_configs.txt is refused in every verb that can see its fault."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sightline.contract import registry
from tests.command import Outcome, run_here, succeed
from tests.limits import count_calls, limited
from tests.runs.small import TINY

TABLE = Path(__file__).with_name("broken_configs.txt")
VERBS = ("show", "check", "train")
FAMILIES = "key name type range size classes path flag schedule process checkpoint check syntax hostile".split()
"""How their names begin: what is wrong in them."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, which must be empty afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir()), "a refused config leaves nothing behind"


class BrokenConfig(NamedTuple):
    """A row of the table."""

    name: str
    seen_by: tuple[str, ...]
    says: str
    text: str


def read_table() -> list[BrokenConfig]:
    _, *blocks = TABLE.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")
    rows = []
    for block in blocks:
        heading, _, text = block.partition("\n")
        found = re.fullmatch(r"# (\w+)(?: \(([a-z ]+)\))?: (.+)", heading)
        assert found, heading
        name, marks, says = found[1], (found[2] or "").split(), found[3]
        seen_by = tuple(mark for mark in marks if mark != "alone") or VERBS
        rows.append(BrokenConfig(name, seen_by, says, ("" if "alone" in marks else "base: tiny.yaml\n") + text + "\n"))
    return rows


CASES = read_table()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs of all rows, beside the healthy one on which they stand."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copy(TINY, folder)
    for case in CASES:
        (folder / f"{case.name}.yaml").write_text(case.text, encoding="latin-1")
    return folder


def test_there_are_enough_of_them_in_every_family() -> None:
    assert {case.name.partition("_")[0] for case in CASES} == set(FAMILIES)
    assert len({case.name for case in CASES}) == len(CASES) >= 120


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_with_place_value_and_what_is_allowed(
    folder: Path, case: BrokenConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "show" in case.seen_by:
        monkeypatch.setattr(registry.data, "build", _no_data)
    for verb in case.seen_by:
        with limited():
            code, _, said = run_here(verb, folder / f"{case.name}.yaml")
        assert code == 2, said
        assert re.search(case.says, said), f"{verb} said: {said}"
        assert said.startswith("error: ")
        assert said.count("\n") == 1, f"one line for one fault: {said}"
        assert "Traceback" not in said
        assert said.isprintable() or said[:-1].isprintable(), "nothing that a terminal would obey"


def _no_data(*arguments: object, **options: object) -> None:
    raise AssertionError("the config alone tells, so no data set may be opened")


def test_what_they_stand_on_is_healthy() -> None:
    succeed("check", TINY)


def test_every_other_verb_passes_where_a_fault_cannot_be_seen(folder: Path) -> None:
    """What `show` is not said to see, it does not see: the table hides no verb that would refuse."""
    for case in CASES:
        if "show" not in case.seen_by:
            code, _, said = run_here("show", folder / f"{case.name}.yaml")
            assert code == 0, f"{case.name}: {said}"


MANY_FAULTS = """\
base: tiny.yaml
optimizer: {lr: 0.2}
modle: {dropout: 0.1}
data: {num_points: "1e3", points: 3}
transforms:
  train: [{name: scale, low: 2},
    {name: jitter, std: -0.1}]
seed: !!int 5
optimizer: {lr: 0.3}
train: {micro_batches: 9, batch_size: 4}
"""
"""Eight faults, in values, keys, blocks that contradict themselves and in the YAML itself."""


def test_all_faults_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    (folder / "many_faults.yaml").write_text(MANY_FAULTS)
    code, _, said = run_here("show", folder / "many_faults.yaml")
    assert code == 2
    expected = [
        r":3: modle: unknown key 'modle'; did you mean 'model'\?",
        r":4: data.num_points: found the text '1e3', allowed is a whole number from 1 to 1000000",
        r":4: data.points: 'synthetic_shapes' has no such argument; did you mean 'num_points'\?",
        r":6: transforms.train.0: scale: low 2 is above high 1.5; exchange them",
        r":7: transforms.train.1.std: found -0.1, allowed is a number, at least 0",
        r":8: seed: the tag '!!int' is not allowed; write a plain value",
        r":9: optimizer: 'optimizer' is given twice, first on line 2",
        r":10: train.micro_batches: found 9 micro-batches of a batch of 4 samples, allowed is at most one per sample",
    ]
    lines = said.removeprefix("error: ").splitlines()
    assert len(lines) == len(expected), said
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


@pytest.mark.parametrize("verb", ["check", "train"])
def test_more_neighbours_than_points_is_a_finding(verb: str) -> None:
    """Only the data tells how many points there are, after its transforms: a finding's exit code, before any step."""
    overrides = ["model={name: dgcnn, num_neighbours: 40, embedding: 16}"]
    code, _, said = run_here(verb, TINY, *overrides)
    assert code == 1
    assert "40 neighbours asked for in clouds of 32 points; lower num_neighbours" in said


def test_a_file_without_end_or_of_any_size_is_refused_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("large")
    (folder / "long.yaml").write_text("# nothing\n" * 100_000)
    (folder / "wide.yaml").write_text("a: [" + "1, " * 50_000 + "1]\n")
    (folder / "empty.yaml").write_text("")
    told: list[Outcome] = []
    for place, expected in (
        (folder / "long.yaml", "has 1,000,000 bytes; a config has at most 200,000"),
        (folder / "wide.yaml", "has more than 10,000 values; a config this large is not one"),
        (folder / "empty.yaml", "found nothing, allowed are lines of `key: value`"),
        (Path("/dev/zero"), "is not a plain file; a config is read from one"),
        (folder, "give a YAML file ('sightline list configs' prints those that come along) or the folder of a run"),
        (folder / "lon.yaml", "no such file; did you mean 'long.yaml'?"),
        ("train.epochs=3", "no such file; the config comes first, key=value after it"),
    ):
        with limited():
            num_calls = count_calls(lambda place=place: told.append(run_here("show", place)))
        code, _, said = told.pop()
        assert code == 2
        assert said.startswith(f"error: {place}")
        assert said.endswith(f"{expected}\n")
        assert num_calls < 3_000_000  # 1.5 million of the wide one
