"""Saved features are loaded where all that they depend on is the same; else they are computed anew, in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from sightline.contract import registry
from sightline.contract.plugins import load_plugins
from sightline.engine.distributed import World
from sightline.store.files import atomic_write
from sightline.workbench.probe import probed_run, saved_features
from sightline.workbench.probe.features import Features, FeatureSplit
from sightline.workbench.probe.probed_run import extract_split, extract_with_random, open_probed
from sightline.workbench.probe.saved_features import MAX_FILES, SavedFeatures
from tests.cases import run_each
from tests.command import succeed
from tests.data.clouds.cloud_writers import prepare_folder, write_folder
from tests.probe.contrast import THIN, train_thin
from tests.runs.test_checkpoint_stops import close_disk
from tests.trained import copy_run

pytestmark = pytest.mark.usefixtures("package_digested_once")
FEW = ("data.train_size=24", "data.test_size=12")
Read = tuple[FeatureSplit, list[str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and the features of its last weights, and of random ones."""
    run = copy_run("contrast", tmp_path_factory.mktemp("saved"))
    read(run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def overrides_of(data: Path | None, overrides: tuple[str, ...]) -> tuple[str, ...]:
    return overrides if data is not None else (*FEW, *overrides)


def read(run: Path, *overrides: str, checkpoint: str = "last", data: Path | None = None) -> Read:
    """The features that a probe gets of a run on a few clouds, and what it says of them, and of random ones."""
    lines: list[str] = []
    probed = open_probed(run, checkpoint=checkpoint, data=data, overrides=overrides_of(data, overrides))
    split, _ = extract_with_random(probed, World(), note=lines.append)
    return split, lines


def compute(run: Path, *overrides: str, checkpoint: str = "last", data: Path | None = None) -> FeatureSplit:
    probed = open_probed(run, checkpoint=checkpoint, data=data, overrides=overrides_of(data, overrides))
    return extract_split(probed.network(World()), "float32", probed.data, World())


def is_same(one: FeatureSplit, two: FeatureSplit) -> bool:
    pairs = ((getattr(split, part) for split in (one, two)) for part in ("train", "test"))
    return all(np.array_equal(a.rows, b.rows) and np.array_equal(a.labels, b.labels) for a, b in pairs)


def test_a_second_probe_loads_them_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_run("contrast", tmp_path)
    words = ("evaluate", run, "--probe", "svm,knn,linear", "k=3", "C=1", "folds=2", "--device", "cpu", "--json")
    first = succeed(*words, tmp_path / "first.json")
    monkeypatch.setattr(probed_run, "extract", None)
    second = succeed(*words, tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    notes = [line for line in second.err.splitlines() if f"features from {run / 'features'}/" in line]
    assert [line.partition("features")[0] for line in notes] == ["", "random weights: "]
    assert "features from" not in first.err
    names = {"probe_svm_accuracy", "probe_knn_accuracy", "probe_linear_accuracy"}
    (document,) = json.loads((tmp_path / "second.json").read_text())["runs"]
    assert set(document["metrics"]) == names | {f"{name}_random" for name in names}


@run_each(
    "overrides, part",
    [
        (["data.num_points=48"], "data"),
        (["transforms.evaluate=[{name: scale, low: 2, high: 2}]"], "evaluation transforms"),
        (["model.points.num_neighbours=4"], "model settings"),
        (["evaluate.batch_size=7"], "evaluation batch size"),
    ],
)
def test_other_words_of_the_command_are_computed_anew(trained: Path, overrides: list[str], part: str) -> None:
    """Then both are saved: neither is computed again, and each is that of its own words."""
    shutil.rmtree(trained / "features", ignore_errors=True)
    before, _ = read(trained)
    after, lines = read(trained, *overrides)
    assert lines[0] == f"features are computed anew: those in {trained / 'features'} differ in {part}"
    assert lines[1].startswith("random weights: features are computed anew: ")
    assert is_same(after, compute(trained, *overrides))
    for words, expected in ((overrides, after), ([], before)):
        again, lines = read(trained, *words)
        assert is_same(again, expected)
        assert lines[0].startswith(f"features from {trained / 'features'}")
    if part == "evaluation batch size":
        assert np.allclose(before.train.rows, after.train.rows, atol=1e-6)
    else:
        assert not np.array_equal(before.train.rows, after.train.rows)


def test_a_run_that_goes_on_and_another_checkpoint_are_computed_anew(tmp_path: Path) -> None:
    """Rates this high make the second epoch worse: the first one is the best."""
    words = (*FEW, "evaluate.every=1", "optimizer.lr=0.5", "checkpoint.keep_last=2")
    run = train_thin(tmp_path, *words)
    first, _ = read(run)
    words = ("--resume", "auto", "train.epochs=2", "--no-check", "--device", "cpu")
    succeed("train", run, *words)
    for checkpoint in ("last", "best"):
        loaded, lines = read(run, checkpoint=checkpoint)
        assert is_same(loaded, compute(run, checkpoint=checkpoint))
        is_first = (run / "checkpoints" / checkpoint).resolve().name == "step_00000001"
        assert is_same(loaded, first) == is_first
        if not is_first:
            assert lines[0] == f"features are computed anew: those in {run / 'features'} differ in weights"
            assert "random weights: features from" in lines[1]
    assert (run / "checkpoints/last").resolve().name == "step_00000002"


def test_another_root_or_a_set_that_was_prepared_again_is_computed_anew(run: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "clouds", per_class=6)
    for seed in (0, 1):
        prepare_folder(tmp_path / "clouds", tmp_path / f"set{seed}", seed=seed, test_share=0.3)
    config = tmp_path / "own.yaml"
    synthetic = "synthetic_shapes, train_size: 72, test_size: 36, num_points: 64"
    config.write_text(THIN.replace(synthetic, f"cloud_folder, root: {tmp_path}/set0"))
    first, _ = read(run, data=config)
    second, lines = read(run, f"data.root={tmp_path}/set1", data=config)
    assert lines[0].endswith("differ in data")
    assert is_same(second, compute(run, f"data.root={tmp_path}/set1", data=config))
    assert not is_same(second, first)
    shutil.rmtree(tmp_path / "set0")
    (tmp_path / "set1").rename(tmp_path / "set0")
    third, lines = read(run, data=config)
    assert lines[0].endswith("differ in data")
    assert is_same(third, second)


# --- code -------------------------------------------------------------------------------------------------------------

MODEL = """\
from sightline.areas.contrast.crosspoint import IntraPoint
import sightline

@sightline.register.model("scaled_intrapoint")
class Scaled(IntraPoint):
    def encode(self, *, points):
        {late}
        return {factor} * super().encode(points=points)
"""


@pytest.fixture
def plugins_are_gone_afterwards() -> Iterator[None]:
    """Plugins are gone afterwards: other tests count the built-in names, and features depend on what is loaded."""
    before = {kind: dict(kept._entries) for kind, kept in registry.REGISTRIES.items() if kept.names()}
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    for kind, entries in before.items():
        registry.REGISTRIES[kind]._entries = entries


@pytest.mark.usefixtures("plugins_are_gone_afterwards")
def test_a_rewritten_plugin_is_computed_anew(run: Path, tmp_path: Path) -> None:
    """Twice the factor is twice every feature, exactly: 2 is a power of two."""
    plugin = tmp_path / "scaled_model.py"
    points = "model.points={name: dgcnn, num_neighbours: 8, embedding: 16}"
    words = ("model.name=scaled_intrapoint", points, "model.embedding=16")
    rows = []
    for factor in (1.0, 2.0):
        plugin.write_text(MODEL.format(late="", factor=factor))
        load_plugins([plugin])
        split, lines = read(run, *words)
        rows.append(split.train.rows)
    assert lines[0].endswith("differ in code")
    assert np.array_equal(2 * rows[0], rows[1])
    (tmp_path / "imported_late.py").write_text("")
    plugin.write_text(MODEL.format(late="import imported_late", factor=2.0))
    load_plugins([plugin])
    lines = read(run, *words)[1]
    assert lines[1].startswith("features are not saved: a plugin imported modules of its own")


def test_other_code_of_sightline_is_computed_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_features, "digest_package", lambda: "edited")
    assert read(run)[1][0].endswith("differ in code")


def test_data_that_do_not_state_what_they_hold_are_never_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "features")
    monkeypatch.setattr(saved_features, "get_data_digest", lambda dataset: None)
    assert "features are not saved: the data set states no `fingerprint` of its contents" in read(run)[1]
    assert not (run / "features").exists()


# --- files ------------------------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def exchange(data: bytes) -> bytes:
    """Other arrays by a digest of their own, under the same key."""
    arrays = safetensors.numpy.load(data)
    arrays["train.rows"] = arrays["train.rows"].astype(np.float64)
    key = saved_features._parse_metadata(data)["key"]
    metadata = {"key": json.dumps(key), "sha256": saved_features._digest_arrays(arrays)}
    return safetensors.numpy.save(arrays, metadata)


@run_each(
    "damage, reason",
    [
        (flip, "its content is not what was saved, by its SHA-256"),
        (
            lambda data: data.replace(b'"weights', b'"weighty', 1).replace(b'\\"weights', b'\\"weighty', 1),
            "not what was",
        ),
        (lambda data: data[: len(data) // 2], "Unterminated string"),
        (lambda data: b"", ""),
        (lambda data: b"\xff" * 8, "its header is too long"),
        (lambda data: (2).to_bytes(8, "little") + b"[]", ""),
        (exchange, "it holds other arrays than features and labels"),
    ],
)
def test_a_damaged_file_is_computed_anew(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    shutil.rmtree(tmp_path / "features", ignore_errors=True)
    load({"weights": "a"}, tmp_path)
    (path,) = (tmp_path / "features").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    (line,) = load({"weights": "a"}, tmp_path)
    assert line.startswith(f"features are computed anew: {path} is damaged (")
    assert reason in line
    assert load({"weights": "a"}, tmp_path) == [f"features from {path}"]


def load(key: Mapping[str, str], folder: Path) -> list[str]:
    """What is said as features of this key are loaded or made, which are right."""
    lines: list[str] = []
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    split = FeatureSplit(Features(rows, np.arange(4)), Features(rows[:2] + 1, np.arange(2)))
    saved = SavedFeatures(folder / "features", "trained")
    assert is_same(saved.load_or_extract(lambda: key, lambda: split, world=World(), note=lines.append), split)
    return lines


def saved_file_of(run: Path) -> Path:
    """The file that a probe without further words reads."""
    return Path(read(run)[1][0].removeprefix("features from "))


def test_neither_a_pipe_nor_a_link_is_read(run: Path, tmp_path: Path) -> None:
    path = saved_file_of(run)
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "elsewhere")):
        path.rename(tmp_path / "elsewhere")
        make(path)
        assert "it is not a plain file" in read(run)[1][0]
        assert path.is_file()
        assert not path.is_symlink()


@run_each("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_nothing_changes_no_figure(trained: Path, number: int) -> None:
    expected, _ = read(trained)
    with pytest.MonkeyPatch.context() as patched:
        close_disk(patched, trained, number)
        loaded, lines = read(trained)
        assert lines[0].startswith("features from")
        assert is_same(loaded, expected)
        lines = read(trained, "data.num_points=40")[1]
    assert lines[1] == f"features are not saved: {trained / 'features'}: {os.strerror(number)}"


def test_a_kill_while_they_are_written_leaves_no_broken_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at the moment when a whole file would get its name."""
    expected, path = read(run)[0], saved_file_of(run)
    shutil.rmtree(run / "features")
    process = os.fork()
    if not process:
        monkeypatch.setattr(atomic_write.os, "replace", lambda *paths: os._exit(9))
        read(run)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert [left.name for left in (run / "features").iterdir()] == [f".{path.name}.partial"]
    loaded, lines = read(run)
    assert is_same(loaded, expected)
    assert lines == []
    assert [left.name.partition("-")[0] for left in sorted((run / "features").iterdir())] == ["random", "trained"]


def test_the_files_that_were_written_first_go(tmp_path: Path) -> None:
    """Nine keys, whose files get a second each: the first one is gone, and computed anew in place of the next."""
    keys = [{"weights": str(number), "data": str(number % 2)} for number in range(MAX_FILES + 1)]
    for second, key in enumerate(keys):
        load(key, tmp_path)
        for path in (tmp_path / "features").iterdir():
            os.utime(path, (second, min(second, path.stat().st_mtime)))
    assert len(list((tmp_path / "features").iterdir())) == MAX_FILES
    assert load(keys[-1], tmp_path)[0].startswith("features from")
    assert load(keys[0], tmp_path) == [f"features are computed anew: those in {tmp_path}/features differ in weights"]
    assert load(keys[1], tmp_path)[0].startswith("features are computed anew")
    assert load({"weights": "x", "data": "y"}, tmp_path)[0].endswith("differ in weights and data")
