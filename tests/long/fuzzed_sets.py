"""Readers of whole sources, one file of which is damaged: public sets as they are prepared, and a teacher's run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.long.fuzzed_readers import Reader, seal_of_checkpoint

__all__ = ["set_readers", "teacher_readers"]

Prepare = Callable[[Path, Path], object]


def set_readers(folder: Path) -> Iterator[Reader]:
    """Of every public set that is prepared by reading its arrays: a file of each kind and folder of its source."""
    targets = itertools.count()
    for name, (write, prepare) in _sets().items():
        source = folder / name / "source"
        source.parent.mkdir(parents=True)
        write(source)
        for path in _of_each_kind(source):

            def read(source: Path = source, prepare: Prepare = prepare) -> None:
                target = folder / f"target{next(targets)}"
                try:
                    prepare(source, target)
                finally:
                    for made in folder.glob("target*"):
                        shutil.rmtree(made) if made.is_dir() else made.unlink()

            yield Reader(f"set {name} {path.relative_to(source)}", path, read)


def _of_each_kind(source: Path) -> list[Path]:
    """The first file of every suffix in each folder of a depth."""
    found: dict[tuple[int, str], Path] = {}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix:  # others are read by nobody
            found.setdefault((len(path.parts), path.suffix), path)
    return list(found.values())


def _sets() -> dict[str, tuple[Callable[[Path], object], Prepare]]:
    from tests.data.clouds import modelnet_writers, scanobjectnn_writers, shapenet_part_writers, shapenet_render_writers
    from tests.data.depth import figure_trees, test_depth_sets
    from tests.data.scenes import scene_writers, test_s3dis, test_s3dis_integers, test_scene_folder

    def frames(name: str) -> tuple[Callable[[Path], object], Prepare]:
        kind, write = test_depth_sets.SETS[name]
        return write, lambda source, target: _prepared(kind, source, target)

    part, modelnet = shapenet_part_writers.prepare, modelnet_writers.prepare
    rows = np.random.default_rng(0).integers(0, 9, (9, 7)).astype(np.float32)
    msra = lambda root: figure_trees.write_msra_hands(root, {"P0/1": 2, "P1/5": 2})  # noqa: E731
    sets: dict[str, tuple[Callable[[Path], object], Prepare]] = {
        "modelnet_h5": (modelnet_writers.write_hdf5, lambda *places: modelnet(*places, progress=_quiet)),
        "modelnet_text": (modelnet_writers.write_text, lambda *places: modelnet(*places, progress=_quiet)),
        "scanobjectnn": (lambda root: scanobjectnn_writers.write_variant(root, "obj_bg"), scanobjectnn_writers.prepare),
        "shapenet_part_text": (shapenet_part_writers.write_text, lambda *places: part(*places, progress=_quiet)),
        "shapenet_part_h5": (shapenet_part_writers.write_hdf5, lambda *places: part(*places, progress=_quiet)),
        "shapenet_render": (shapenet_render_writers.write_release, shapenet_render_writers.prepare),
        "s3dis": (scene_writers.write_s3dis, test_s3dis.prepare),
        "s3dis_bins": (lambda root: (root.mkdir(), test_s3dis_integers.write_bins(root, rows)), _integers),
        "scene_folder": (test_scene_folder.write_folder, test_scene_folder.prepare),
        "msra_hands": (msra, lambda source, target: _prepared(_msra(), source, target)),
        **{name: frames(name) for name in test_depth_sets.SETS},
    }
    return sets


def _integers(source: Path, target: Path) -> object:
    from tests.data.scenes import test_s3dis_integers

    return test_s3dis_integers.prepare(source, target, order="A")


def _msra() -> Any:
    from sightline.data.depth.msra_hands import MsraHands

    return MsraHands


def _quiet(done: int, total: int, what: str) -> None:
    """Of a damaged source any number may be announced."""


def _prepared(kind: Any, source: Path, target: Path) -> None:
    """A set of depth frames prepared, and its first frame of each part read: the images stay where they are."""
    from sightline.types import SampleKey

    kind.prepare(source=source, target=target, name=kind.set_name, progress=_quiet)
    for split in ("train", "test"):
        part = kind(split=split, root=str(target))
        if len(part):
            part[SampleKey(0, 0, 0)]


def teacher_readers(folder: Path) -> Iterator[Reader]:
    """Every file of the run that `teacher.from` names, and the tensors of its checkpoint under new seals."""
    from sightline.engine.build import _teacher
    from sightline.engine.distributed import World
    from sightline.plugins import load_plugins
    from sightline.runs.run_documents import read_facts
    from tests.runs.broken_off import Bench, run_forked

    bench = Bench(folder)
    code, text = run_forked(bench.words("run", "train.epochs=1"), folder / "log")
    assert code == 0, text
    load_plugins([bench.plugin])
    run = folder / "run"
    facts = read_facts(run)
    teacher = SimpleNamespace(source=str(run), sha256=None)
    config: Any = SimpleNamespace(teacher=teacher, origins={}, train=SimpleNamespace(precision="float32"))
    for path in sorted(run.iterdir()):
        if path.suffix in (".json", ".yaml"):
            yield Reader(f"teacher {path.name}", path, lambda: _teacher(config, facts, World()))
    place = (run / "checkpoints/last").resolve()
    for path in sorted(place.iterdir()):
        read = lambda: _teacher(config, facts, World())  # noqa: E731
        yield Reader(f"teacher {path.name}, resealed", path, read, seal_of_checkpoint(place))
