"""Features are those of the code that runs: a plugin that was rewritten makes the kept ones void."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.plugins import load_plugins
from sightline.contract.types import ComponentConfig
from sightline.workbench.probe import features
from sightline.workbench.probe.features import plugin_digests
from tests.command import run_here
from tests.probe.contrast import train_thin

POINTS = "{name: dgcnn, num_neighbours: 8, embedding: 16}"
MODEL = """\
from sightline.contract import registry
from sightline.areas.contrast.crosspoint import IntraPoint

@registry.models.add("scaled_intrapoint")
class Scaled(IntraPoint):
    def encode(self, *, points, features=None):
        return {factor} * super().encode(points=points, features=features)
"""
TRANSFORM = """\
from sightline.contract import registry

@registry.transforms.add("stretch_for_probes")
class Stretch:
    def __init__(self) -> None:
        pass

    def __call__(self, draws, *, points):
        return {{"points": {factor} * points}}
"""


@pytest.fixture(autouse=True)
def _only_here() -> Iterator[None]:
    """Names of plugins are gone afterwards: other tests count the built-in ones."""
    before = {kind: dict(each._entries) for kind, each in registry.REGISTRIES.items() if each.names()}
    yield
    for kind, entries in before.items():
        registry.REGISTRIES[kind]._entries = entries


def rows_of(run: Path, *words: object) -> dict[str, np.ndarray]:
    """The features that a run's probe has kept so far, by file."""
    outcome = run_here("probe", run, "--method", "knn", "k=1", "folds=2", *words, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    return {path.name: np.load(path)["rows"] for path in run.glob("features/*.npz")}


def written(file: Path, text: str, *, factor: float) -> Path:
    file.write_text(text.format(factor=factor))
    return file


def test_a_rewritten_model_is_probed_anew(tmp_path: Path) -> None:
    """Twice the factor is twice every feature, exactly: 2 is a power of two."""
    plugin = written(tmp_path / "scaled_model.py", MODEL, factor=1.0)
    run = train_thin(tmp_path, "--plugin", plugin, "model.name=scaled_intrapoint", f"model.points={POINTS}")
    before = rows_of(run, "--plugin", plugin)
    written(plugin, MODEL, factor=2.0)
    after = rows_of(run, "--plugin", plugin)
    assert len(before) == 4
    made = [rows for name, rows in after.items() if name not in before]
    for rows in before.values():
        assert sum(np.array_equal(2 * rows, other) for other in made if other.shape == rows.shape) == 1


def test_a_rewritten_transform_is_applied_anew(tmp_path: Path) -> None:
    run = train_thin(tmp_path)
    plugin = tmp_path / "stretching.py"
    words = ("--plugin", plugin, "transforms.evaluate=[{name: stretch_for_probes}]")
    counts = []
    for factor in (1.0, 3.0, 1.0):
        written(plugin, TRANSFORM, factor=factor)
        counts.append(len(rows_of(run, *words)))
    assert counts[1:] == [counts[0] + 4, counts[0] + 4], "anew once, and found again when it is what it was"


def test_blocks_inside_blocks_and_base_classes_are_looked_at(tmp_path: Path) -> None:
    """What was run counts, whatever has become of the file since."""
    plugin = tmp_path / "held_encoder.py"
    plugin.write_text(
        "from sightline.contract import registry\n"
        "from sightline.areas.clouds.models.dgcnn import DGCNNEncoder\n\n"
        '@registry.point_encoders.add("held_dgcnn")\n'
        "class Held(DGCNNEncoder):\n"
        '    """A graph network."""\n'
    )
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    load_plugins([plugin])
    plugin.write_text("# something else\n")
    block = ComponentConfig("intrapoint", {"points": {"name": "held_dgcnn"}})
    assert [each.entry.name for each in registry.models.bind(block).iterate()] == ["intrapoint", "held_dgcnn"]
    assert plugin_digests(("models", block)) == {"held_encoder.py": digest}
    assert plugin_digests(("models", ComponentConfig("intrapoint", {"points": {"name": "dgcnn"}}))) == {}


def _is_in_rooms(name: Path) -> bool:
    return any(name.is_relative_to(room) for room in features.ROOMS if room != ".")


def test_the_digest_covers_every_module_of_its_rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the package, in which any module is edited, renamed or moved, is other source; other rooms are not."""
    package = Path(features.__file__).parents[2]
    files = sorted(file for kind in ("py", "json", "yaml") for file in package.rglob(f"*.{kind}"))
    copied = [file.relative_to(package) for file in files]
    for name in copied:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(name))
    monkeypatch.setattr(features.resources, "files", lambda package: tmp_path)
    read: list[Path] = []
    plain = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.relative_to(tmp_path)) or plain(self))
    digest_of = features.source_sha256.__wrapped__
    before = digest_of()
    assert sorted(read) == sorted(name for name in copied if len(name.parts) == 1 or _is_in_rooms(name))
    moved = tmp_path / "areas" / "scans" / "models" / "__init__.py"
    moved.rename(moved.with_name("other.py"))
    renamed = digest_of()
    (tmp_path / "draws.py").write_text("k = 21\n")
    assert len({before, renamed, digest_of()}) == 3


def test_rooms_that_make_features_read_no_other() -> None:
    """What a room imports is source of its features too; areas, engine and probe also hold what makes none."""
    package = Path(features.__file__).parents[2]
    for room in set(features.ROOMS) - {".", "areas", "engine", "workbench/probe"}:
        for file in (package / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
                if name[:1] == ["sightline"] and len(name) > 1 and (package / name[1]).is_dir():
                    assert _is_in_rooms(Path(*name[1:])), f"{file.name} reads {'.'.join(name)}"


def test_the_source_is_a_part_of_the_key(tmp_path: Path) -> None:
    run = train_thin(tmp_path)
    documents = [json.loads(path.read_text()) for path in run.glob("features/*.json")]
    assert [each["key"]["source"] for each in documents] == [features.source_sha256()] * 2


def test_the_source_is_looked_at_before_training_begins() -> None:
    """A checkout may be edited while a run trains: its features are those of the source that was imported."""
    code = (
        "import sightline.training.train_run\nfrom sightline.workbench.probe import features\n"
        "print(features.source_sha256.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
