"""A number format that the machine would compute faster in: measured, and silent where there is nothing to gain."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.engine.build import UnusedFormat, build, find_unused_format
from sightline.engine.device import resolve_precision
from sightline.engine.distributed import World
from sightline.workbench.check.checks.model import unused_format as module
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.examination import Examination, describe_examination
from sightline.workbench.check.suite import run_all, run_quick
from tests.doctor.planting import CONFIG

WIDE = CONFIG.replace("embedding: 32", "embedding: 1024")


def stand_in(path: Path, *overrides: str) -> UnusedFormat:
    """A network of another width in the place of a faster format, since not every machine has one; times are real."""
    return UnusedFormat(overrides, read_config(path, overrides))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "wide.yaml"
    path.write_text(WIDE)
    return path


def test_a_faster_setting_is_named_with_its_gain(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = stand_in(wide, "model.embedding=8")
    monkeypatch.setattr(module, "find_unused_format", lambda config, world: narrow)
    built, examination = build(read_config(wide), World()), Examination()
    findings = run_all(built, World(), examination=examination)
    assert "unused-format" not in {finding.code for finding in findings}
    document = examination.to_dict()
    assert document["faster"]["overrides"] == ("model.embedding=8",)
    assert document["faster"]["ratio"] > 1.15
    assert "model.embedding=8 makes a step" in describe_examination(document)[-1]
    quick = Examination()
    run_quick(built, World(), examination=quick)
    assert quick.faster is None


@pytest.mark.parametrize("embedding", [1024, 2048])
def test_what_gains_nothing_is_not_mentioned(wide: Path, monkeypatch: pytest.MonkeyPatch, embedding: int) -> None:
    slow = stand_in(wide, f"model.embedding={embedding}")
    monkeypatch.setattr(module, "find_unused_format", lambda config, world: slow)
    monkeypatch.setattr(module, "_MIN_RATIO", 2.0)  # two equal steps differ by less, whatever else the machine does
    context = Context(build(read_config(wide), World()), World())
    assert module.unused_format.run(context) == []
    assert context.examination.faster is None


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("classify/synthetic_shapes_pointnet", ("train.precision=bf16",)),
        ("segment/synthetic_lidar_squeezeseg", ("train.precision=bf16", "model.channels_last=true")),
        ("pose/synthetic_hands_v2v_small", ()),
    ],
)
def test_the_setting_of_a_recipe(config: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with bf16 instructions: recipes in float32 leave it unused, those in bf16 do not; on others none."""
    monkeypatch.setattr("sightline.engine.build.resolve_precision", lambda name, device: "bf16")
    found = read_config(Path(f"configs/{config}.yaml"))
    unused = find_unused_format(found, World())
    assert (() if unused is None else unused.overrides) == overrides
    assert unused is None or unused.config == read_config(Path(f"configs/{config}.yaml"), overrides)
    monkeypatch.setattr("sightline.engine.build.resolve_precision", lambda name, device: "float32")
    assert find_unused_format(found, World()) is None


def test_a_format_of_ones_own_choice_stays() -> None:
    config = read_config(Path("configs/classify/synthetic_shapes_pointnet.yaml"), ["train.precision=float64"])
    assert find_unused_format(config, World()) is None
    assert resolve_precision("float64", World().device) == "float64"
