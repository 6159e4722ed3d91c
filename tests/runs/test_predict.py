"""`sightline predict` on files gives what `sightline evaluate` scored, sample by sample, whatever the files are."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.types import SampleKey
from sightline.parts.tasks.classification import Classify
from tests.command import run_here, succeed
from tests.data.clouds.cloud_writers import WRITERS, columns_of, write_off, write_ply
from tests.data.clouds.modelnet_writers import CLASS_NAMES, prepare
from tests.runs.small import ROOT, SMALL
from tests.trained import copy_run

CONFIGS = ROOT / "configs" / "classify"
Scored = Callable[[Path], np.ndarray]

# Float32 products of other batches are rounded differently: 2^-24 for each of some 1,024 terms at the worst.
ROUNDING = 1e-4


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    """A function that evaluates a run and gives the probabilities (samples, classes) that were scored."""
    found: dict[int, np.ndarray] = {}
    assess = Classify.losses_and_predictions

    def recording(self: Classify, model: Any, batch: Any, around: Any) -> Any:
        sums, predictions = assess(self, model, batch, around)
        rows = predictions["probabilities"].double().numpy()
        found.update(zip(batch["sample_index"].tolist(), rows, strict=True))
        return sums, predictions

    def evaluate(run: Path) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(Classify, "losses_and_predictions", recording)
            done = run_here("evaluate", run, "--device", "cpu")
        assert done.code == 0, done.err
        return np.stack([found[index] for index in range(len(found))])

    return evaluate


def trained(out: Path, config: str, *overrides: str) -> Path:
    given = {override.split("=")[0] for override in overrides}
    cuts = [cut for cut in SMALL if cut.split("=")[0] not in given]
    if "data.root" in given:
        cuts = [cut for cut in cuts if not cut.startswith("data.")]
    succeed("train", CONFIGS / f"{config}.yaml", *cuts, *overrides, "--no-check", "--device", "cpu", "--out", out)
    return out


def predicted(run: Path, *paths: object, expect: int = 0) -> dict[str, Any]:
    out = run.parent / "predicted.json"
    done = run_here("predict", run, *paths, "--device", "cpu", "--json", out)
    assert done.code == expect, done.err
    return json.loads(out.read_text())


def assert_as_scored(document: dict[str, Any], expected: np.ndarray) -> None:
    """The classes of the files, in the order of their names, are those that evaluation scored."""
    rows = sorted(document["predictions"], key=lambda row: row["file"])
    assert [row["label"] for row in rows] == expected.argmax(axis=1).tolist()
    assert [row["class"] for row in rows] == [document["class_names"][row["label"]] for row in rows]
    found = np.array([row["probabilities"] for row in rows])
    assert np.abs(found - expected).max() < ROUNDING
    ordered = np.sort(found, axis=1)
    assert np.allclose([row["margin"] for row in rows], ordered[:, -1] - ordered[:, -2], rtol=0, atol=1e-15)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PointNet on a few solids, with an evaluation transform."""
    return copy_run("classify", tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def clouds(run: Path) -> np.ndarray:
    """The points of the run's test part."""
    shapes = SyntheticShapes(split="test", train_size=60, test_size=24, num_points=32)
    return shapes.get_batch([SampleKey(index, 0, 0) for index in range(24)])["points"].numpy()


@pytest.mark.parametrize("ending", sorted(set(WRITERS) - {".off"}))
def test_files_of_every_kind_are_classed_as_evaluation_scored_them(
    run: Path, clouds: np.ndarray, tmp_path: Path, scored: Scored, ending: str
) -> None:
    for index, cloud in enumerate(clouds):
        WRITERS[ending](tmp_path / f"{index:03d}{ending}", cloud)
    document = predicted(run, tmp_path)
    assert_as_scored(document, scored(run))
    assert {row["treatment"] for row in document["predictions"]} == {"as it is"}
    assert (document["votes"], document["refused"]) == (1, [])


def mesh(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A few random triangles in a box of random sides, far from the origin."""
    draw = np.random.default_rng(seed)
    vertices = draw.random((9, 3)) * draw.uniform(1, 40, size=3) + 100
    return vertices, np.array([draw.choice(9, size=3, replace=False) for _ in range(10)])


@pytest.fixture(scope="module")
def mesh_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on meshes of three classes, with normals, and the folder of its meshes."""
    folder = tmp_path_factory.mktemp("meshes")
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            name = CLASS_NAMES[number % 3]
            place = folder / "off" / name / split
            place.mkdir(parents=True, exist_ok=True)
            write_off(place / f"{name}_{number + 100 * (split == 'test'):04d}.off", *mesh(number + 50 * len(split)))
    prepare(folder / "off", folder / "data")
    run = trained(
        folder / "run", "modelnet40_pointnet", f"data.root={folder / 'data'}", "data.num_points=128",
        "data.normals=file", "model={name: pointnet_plain, embedding: 32}", "losses=[{name: cross_entropy}]",
        "evaluate.select=test",
    )  # fmt: skip
    return run, folder / "off"


def test_meshes_are_drawn_as_they_were_prepared(mesh_run: tuple[Path, Path], scored: Scored) -> None:
    run, meshes = mesh_run
    files = [path for name in CLASS_NAMES[:3] for path in sorted((meshes / name / "test").glob("*.off"))]
    document = predicted(run, *files)
    treatments = {row["treatment"] for row in document["predictions"]}
    assert treatments == {
        "2048 points drawn from the mesh, moved to its mean, scaled to radius 1, the first 128 points"
    }
    assert_as_scored(document, scored(run))


@pytest.mark.parametrize("num_points", [128, 2048])
def test_prepared_clouds_written_out_are_taken_bit_for_bit(
    mesh_run: tuple[Path, Path], tmp_path: Path, scored: Scored, num_points: int
) -> None:
    """All stored points of a shape, or as many as the run takes; neither is normalised a second time."""
    run, meshes = mesh_run
    shapes = ModelNet40(split="test", root=str(meshes.parent / "data"), num_points=num_points, normals="file")
    batch = shapes.get_batch([SampleKey(index, 0, 0) for index in range(len(shapes))])
    for index in range(len(shapes)):
        columns = columns_of(batch["points"][index].numpy(), batch["normals"][index].numpy())
        write_ply(tmp_path / f"{index}.ply", columns)
    document = predicted(run, tmp_path)
    assert {row["treatment"] for row in document["predictions"]} <= {"as it is", "the first 128 points"}
    assert_as_scored(document, scored(run))


def test_the_users_own_files_are_prepared_as_their_set_was(tmp_path: Path, scored: Scored) -> None:
    """Clouds of many sizes, anywhere, on any scale; with normals from the files."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("bolt", "nut", "washer")):
            folder = tmp_path / "parts" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                points = draw.standard_normal((draw.integers(40, 300), 3)) * [1, 1 + label, 3] * 20 + 500
                normals = draw.standard_normal(points.shape)
                normals /= np.linalg.norm(normals, axis=1, keepdims=True)
                write_ply(folder / f"{number}.ply", columns_of(points, normals))
    to = tmp_path / "data"
    succeed("data", "prepare", "cloud_folder", "--from", tmp_path / "parts", "--to", to, "up_axis=z", "num_points=64")
    run = trained(
        tmp_path / "run", "modelnet40_pointnet", "data={name: cloud_folder, num_points: 48, normals: file}",
        f"data.root={to}", "model={name: pointnet_plain, embedding: 32}", "losses=[{name: cross_entropy}]",
        "evaluate.select=test",
    )  # fmt: skip
    files = sorted((tmp_path / "parts" / "test").rglob("*.ply"))
    document = predicted(run, *files)
    assert {row["treatment"] for row in document["predictions"]} == {"prepared as the set was"}
    assert_as_scored(document, scored(run))


def test_bad_files_are_named_and_the_good_ones_predicted(run: Path, clouds: np.ndarray, tmp_path: Path) -> None:
    good = [tmp_path / "a.npy", tmp_path / "z.ply"]
    WRITERS[".npy"](good[0], clouds[0])
    WRITERS[".ply"](good[1], clouds[1])
    np.save(tmp_path / "b.npy", np.where(np.arange(32)[:, None] == 5, np.nan, clouds[2]))
    np.save(tmp_path / "c.npy", clouds[3][:10])
    np.save(tmp_path / "d.npy", np.ones((32, 3)))
    (tmp_path / "e.ply").write_bytes(good[1].read_bytes()[:-5])
    (tmp_path / "f.jpg").write_bytes(b"no cloud")
    (tmp_path / "empty").mkdir()
    out, table = tmp_path / "out.json", tmp_path / "out.csv"
    bad = ["b.npy", "c.npy", "d.npy", "e.ply", "f.jpg", "empty", "none.npy"]
    done = run_here(
        "predict", run, good[0], *(tmp_path / name for name in bad), good[1], "--json", out, "--csv", table,
        "--device", "cpu", "--batch-size", "1",
    )  # fmt: skip
    assert done.code == 2, done.err
    document = json.loads(out.read_text())
    assert [row["file"] for row in document["predictions"]] == list(map(str, good))
    assert {Path(row["file"]).name for row in document["refused"]} == set(bad)
    reasons = {Path(row["file"]).name: row["reason"] for row in document["refused"]}
    for name, told in {
        "b.npy": "is nan",
        "c.npy": "holds 10 points, the run takes 32",
        "d.npy": "all 32 points coincide",
        "e.ply": "e.ply",
        "f.jpg": "files of this kind are not read",
        "empty": "holds no file of the kinds",
        "none.npy": "there is no such file",
    }.items():
        assert told in reasons[name]
        assert str(tmp_path / name) in reasons[name]
        assert f"refused: {reasons[name]}" in done.err
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["file"] for row in rows[:2]] == list(map(str, good))
    assert [float(row["probability"]) for row in rows[:2]] == [p["probability"] for p in document["predictions"]]
    assert {row["file"]: row["refused"] for row in rows[2:]} == {r["file"]: r["reason"] for r in document["refused"]}
    assert document["predictions"][0]["class"] in done.out


def test_names_of_any_bytes_are_written_and_come_back(run: Path, clouds: np.ndarray, tmp_path: Path) -> None:
    """JSON keeps the bytes of a name; CSV has a file a line, in UTF-8, whatever its name."""
    folder, out, table = tmp_path / "in", tmp_path / "out.json", tmp_path / "out.csv"
    folder.mkdir()
    names = [b"a\nb.npy", b"c\rd.npy", b"\xff.npy", b"[red]x.npy", b'p,"q".npy', b"esc\x1b[31m.npy"]
    for name, cloud in zip(names, clouds, strict=False):
        np.save(folder / os.fsdecode(name), cloud)
        (folder / os.fsdecode(b"bad " + name)).write_bytes(b"junk")
    done = run_here("predict", run, folder, "--json", out, "--csv", table, "--device", "cpu")
    assert done.code == 2, done.err
    document = json.loads(out.read_text())
    for key, expected in (("predictions", names), ("refused", [b"bad " + name for name in names])):
        assert {os.fsencode(Path(row["file"]).name) for row in document[key]} == set(expected)
    rows = table.read_text(encoding="utf-8").splitlines()
    assert len(list(csv.reader(rows))) == len(rows) == 1 + 2 * len(names)
    assert len([line for line in done.err.splitlines() if line.startswith("refused: ")]) == len(names)
    assert done.err.splitlines()[-1] == f"{len(names)} predicted, {len(names)} refused"
    assert "[red]x.npy" in done.out
    (done.out + done.err + table.read_text()).encode()


def test_votes_are_said_not_to_be_applied(clouds: np.ndarray, tmp_path: Path) -> None:
    run = copy_run("classify", tmp_path)
    np.save(tmp_path / "a.npy", clouds[0])
    config = (run / "config.yaml").read_text().replace("votes: 1", "votes: 3")
    votes = "  vote: [{name: rotate, axis: up, max_angle_rad: 3.1, about: origin, probability: 1.0}]"
    (run / "config.yaml").write_text(config.replace("  vote: []", votes))
    done = succeed("predict", run, tmp_path / "a.npy", "--device", "cpu")
    assert "one pass a file: evaluate.votes (3) is not applied" in done.err
    assert "trained on clouds with z up" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--columns", "x,y"), "columns: [x, y] lacks z"),
        (("--checkpoint", "none"), "checkpoint none: there is no none; give last, best or a path; "),
        (("--checkpoint", "beste"), "; did you mean 'best'?"),
        (("--csv", "/"), "--csv /: is a folder"),
        (("--batch-size", "0"), "--batch-size"),
    ],
)
def test_mistakes_are_one_line(run: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    code, out, err = run_here("predict", run, tmp_path, *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert told in err
