"""Every broken config under tests/broken_configs is refused in every verb that can see its fault."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.contract import registry
from tests.command import run_here, succeed

FOLDER = Path(__file__).resolve().parents[1] / "broken_configs"
CASES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("_"))
VERBS = ("show", "check", "train")
LIMIT_S = 5.0
"""R13. Measured as time of the processor: what else the machine does at the moment is not the reader's."""
FAMILIES = "key name type range size classes path flag schedule process checkpoint check syntax hostile".split()
"""How their names begin: what is wrong in them."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, which must be empty afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir()), "a refused config leaves nothing behind"


def expectation(path: Path) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """What the first lines of a broken config say: the message, and the verbs that see the fault."""
    first, second = path.read_text(encoding="latin-1").split("\n")[:2]
    assert first.startswith("# expect: "), f"{path.name} says on its first line what is expected"
    seen_by = second.removeprefix("# seen by: ").split() if second.startswith("# seen by: ") else VERBS
    return re.compile(first.removeprefix("# expect: ")), tuple(seen_by)


def test_there_are_enough_of_them_in_every_family() -> None:
    families = {path.name.partition("_")[0] for path in CASES}
    assert families == set(FAMILIES)
    assert len(CASES) >= 60


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_refused_with_place_value_and_what_is_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message, seen_by = expectation(path)
    if "show" in seen_by:
        monkeypatch.setattr(registry.data, "build", _no_data)
    for verb in seen_by:
        started = time.process_time()
        code, _, said = run_here(verb, path)
        assert time.process_time() - started < LIMIT_S
        assert code == 2, said
        assert message.search(said), f"{verb} said: {said}"
        assert said.startswith("error: ")
        assert said.count("\n") == 1, f"one line for one fault: {said}"
        assert "Traceback" not in said
        assert said.isprintable() or said[:-1].isprintable(), "nothing that a terminal would obey"


def _no_data(*arguments: object, **options: object) -> None:
    raise AssertionError("the config alone tells, so no data set may be opened")


def test_what_they_stand_on_is_healthy() -> None:
    succeed("check", FOLDER / "_healthy.yaml")


def test_every_other_verb_passes_where_a_fault_cannot_be_seen() -> None:
    """What `show` is not said to see, it does not see: the table hides no verb that would refuse."""
    for path in CASES:
        if "show" not in expectation(path)[1]:
            code, _, said = run_here("show", path)
            assert code == 0, f"{path.name}: {said}"


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    code, _, said = run_here("show", FOLDER / "_many_faults.yaml")
    assert code == 2
    expected = [
        r":4: modle: unknown key 'modle'; did you mean 'model'\?",
        r":5: data.num_points: found the text '1e3', allowed is a whole number from 1 to 1000000",
        r":5: data.points: 'synthetic_shapes' has no such argument; did you mean 'num_points'\?",
        r":7: transforms.train.0: scale: low 2 is above high 1.5; exchange them",
        r":8: transforms.train.1.std: found -0.1, allowed is a number, at least 0",
        r":9: seed: the tag '!!int' is not allowed; write a plain value",
        r":10: optimizer: 'optimizer' is given twice, first on line 3",
        r":11: train.micro_batches: found 9 micro-batches of a batch of 4 samples, allowed is at most one per sample",
    ]
    lines = said.removeprefix("error: ").splitlines()
    assert len(lines) == len(expected), said
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


@pytest.mark.parametrize("verb", ["check", "train"])
def test_more_neighbours_than_points_is_a_finding(verb: str) -> None:
    """Only the data tells how many points there are, after its transforms: a finding's exit code, before any step."""
    overrides = ["model={name: dgcnn, num_neighbours: 40, embedding: 16}"]
    code, _, said = run_here(verb, FOLDER / "_healthy.yaml", *overrides)
    assert code == 1
    assert "40 neighbours asked for in clouds of 32 points; lower num_neighbours" in said


def test_a_file_without_end_or_of_any_size_is_refused_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("large")
    (folder / "long.yaml").write_text("# nothing\n" * 100_000)
    (folder / "wide.yaml").write_text("a: [" + "1, " * 50_000 + "1]\n")
    (folder / "empty.yaml").write_text("")
    started = time.process_time()
    for place, expected in (
        (folder / "long.yaml", "has 1,000,000 bytes; a config has at most 200,000"),
        (folder / "wide.yaml", "has more than 10,000 values; a config this large is not one"),
        (folder / "empty.yaml", "found nothing, allowed are lines of `key: value`"),
        (Path("/dev/zero"), "is not a plain file; a config is read from one"),
        (folder, "give a YAML file ('sightline list configs' prints those that come along) or the folder of a run"),
        (folder / "lon.yaml", "no such file; did you mean 'long.yaml'?"),
        ("train.epochs=3", "no such file; the config comes first, key=value after it"),
    ):
        code, _, said = run_here("show", place)
        assert code == 2
        assert said.startswith(f"error: {place}")
        assert said.endswith(f"{expected}\n")
    assert time.process_time() - started < LIMIT_S
