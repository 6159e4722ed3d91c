"""Trains, resumes and evaluates short runs of every shipped procedural recipe at two commits, and compares bytes.

    python tools/before_after.py 8534f4c            that commit against the working tree
    python tools/before_after.py 8534f4c dd840da    two commits
    ... --only pose/ --keep FOLDER                   some recipes; keep the runs

Both run in this interpreter's environment, on this machine, one after the other. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CUBE = (
    "transforms.train=[{name: place_cube, size: 16, max_shift: 1.0}, {name: voxelize}, {name: draw_heatmaps}]",
    "transforms.evaluate=[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]",
)
_FEW_POINTS = "data.num_points=64"
_NARROW = ("data.num_columns=64", "transforms.train.2.width=64", "transforms.evaluate.0.width=64")
_CROWDS = ("data.validation_size=8", "schedule.warmup_epochs=0", "model.backbone.width=8")
_DETECTOR = (*_CROWDS, "model.neck.width=32")
SMALLER = {
    "classify/synthetic_shapes_dgcnn": (_FEW_POINTS,),
    "contrast/synthetic_shapes_crosspoint": ("data.num_points=192", "data.views.count=2"),
    "contrast/synthetic_shapes_intrapoint_parts": (_FEW_POINTS,),
    "detect/synthetic_crowds_fcos": _DETECTOR,
    "detect/synthetic_crowds_retinanet": _DETECTOR,
    "detect/synthetic_crowds_yolov3": _DETECTOR,
    "detect/synthetic_crowds_yolox": _CROWDS,
    "pose/synthetic_bodies_v2v_small": _CUBE,
    "pose/synthetic_hands_v2v": _CUBE,
    "pose/synthetic_hands_v2v_small": _CUBE,
    "segment/synthetic_lidar_deeplabv3": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_rangenet21": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_salsanext": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_squeezeseg": _NARROW,
    "segment/synthetic_rooms_point_transformer": ("data.points_per_m2=10", "transforms.train.5.max_points=512"),
    "segment/synthetic_shapes_dgcnn": (_FEW_POINTS,),
    "segment/synthetic_shapes_dgcnn_from_intrapoint": (_FEW_POINTS, "init=null"),
}
"""What brings single recipes down to seconds; the rest is the same for all."""
SMALL = ("data.train_size=24", "data.test_size=8", "train.batch_size=5", "train.tail=drop", "train.epochs=2")
_PLACES = ("log.tensorboard=false", "evaluate.every=1", "checkpoint.every=1", "checkpoint.keep_last=2")


def recipes(root: Path = ROOT) -> list[str]:
    """The shipped recipes that need no files, as `task/name`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in (root / "configs").glob("*/synthetic_*.yaml"))


def main(words: Sequence[str]) -> int:
    """Run both sides and print a line for each recipe; the exit code."""
    options = _options(words)
    if options.worker is not None:
        return _run_here(options.worker, options.only)
    with tempfile.TemporaryDirectory(prefix="before_after_") as folder:
        kept = Path(options.keep or folder)
        sides = []
        for name, commit in (("before", options.before), ("after", options.after)):
            with _tree(commit, Path(folder) / f"tree_{name}") as tree:
                sides.append(_side(tree, kept / name, options.only))
        return _report(*sides)


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", help="a commit")
    parser.add_argument("after", nargs="?", help="another; the working tree where left out")
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    parser.add_argument("--keep", help="a folder for the runs")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.worker is None and options.before is None:
        parser.error("give the commit before the change")
    return options


@contextlib.contextmanager
def _tree(commit: str | None, place: Path) -> Iterator[Path]:
    """A commit's files in a git worktree of their own, or the working tree itself."""
    if commit is None:
        yield ROOT
        return
    _git("worktree", "add", "--detach", "--quiet", str(place), commit)
    try:
        yield place
    finally:
        _git("worktree", "remove", "--force", str(place))


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)


def _side(tree: Path, out: Path, only: str) -> dict[str, dict[str, str]]:
    """Digests of everything that each recipe's run left, made by the package of this tree."""
    out.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(Path(__file__).resolve()), "--worker", str(out), "--only", only]
    subprocess.run(script, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {recipe: dict(_digests(out / recipe.replace("/", "_"))) for recipe in recipes(tree) if only in recipe}


def _run_here(out: Path, only: str) -> int:
    """Train, resume and evaluate each recipe with the package that this interpreter imports."""
    tree = Path.cwd()
    for recipe in recipes(tree):
        if only not in recipe:
            continue
        whole = out / recipe.replace("/", "_")
        broken = whole.with_name(f"{whole.name}.resumed")
        config = tree / "configs" / f"{recipe}.yaml"
        given = (config, *SMALL, *SMALLER.get(recipe, ()), *_PLACES, "--device", "cpu")
        _sightline("train", *given, "--no-check", "--out", whole)
        shutil.copytree(whole, broken, symlinks=True)
        break_off(broken)
        _sightline("train", *given, "--no-check", "--out", broken, "--resume", "auto")
        _sightline("evaluate", whole, "--device", "cpu", "--json", whole / "evaluated.json")
    return 0


def break_off(run: Path) -> None:
    """Leave a run as it was after its checkpoint before the last."""
    first, last = sorted((run / "checkpoints").glob("step_*"))
    shutil.rmtree(last)
    for link in (run / "checkpoints").glob("*"):
        if link.is_symlink():
            link.unlink()
            link.symlink_to(first.name)
    (run / "final.json").unlink()


def _sightline(*words: object) -> None:
    from sightline import cli

    sys.argv = ["sightline", *map(str, words)]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{' '.join(sys.argv)}: exit code {ended.code}") from ended


def _digests(run: Path) -> Iterator[tuple[str, str]]:
    """Every file of numbers that a run left, whole and resumed; times and places are no numbers of it."""
    for folder in (run, run.with_name(f"{run.name}.resumed")):
        kind = "resumed" if folder.name.endswith(".resumed") else "whole"
        files = [*folder.glob("checkpoints/step_*/*.safetensors"), *folder.glob("predictions/*.png")]
        for path in sorted(files):
            yield f"{kind} {path.relative_to(folder)}", hashlib.sha256(path.read_bytes()).hexdigest()
        for name in ("metrics.jsonl", "final.json", "evaluated.json", "facts.json"):
            if (folder / name).exists():
                lines = (
                    (folder / name).read_text().splitlines() if name.endswith("l") else [(folder / name).read_text()]
                )
                yield f"{kind} {name}", json.dumps([_timeless(json.loads(line)) for line in lines], sort_keys=True)


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if not key.startswith("time_s")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _report(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    is_same = True
    for recipe in sorted(before.keys() | after.keys()):
        one, other = before.get(recipe, {}), after.get(recipe, {})
        differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        is_same &= not differing
        told = "same" if not differing else f"DIFFERS in {', '.join(differing)}"
        sys.stdout.write(f"{recipe}: {told} ({len(one)} files)\n")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
