"""Recipes of contrast on halves of ModelNet40's training part, for docs/results/contrast.md: no test cloud chooses.

    .venv/bin/python tests/long/contrast_halves.py halve --clouds ../shared/data/modelnet40_1024.npz --out half.npz
    sightline data prepare modelnet40 --from half.npz --to half/modelnet40
    sightline data render half/modelnet40 --to half/views --size 64
    sightline train configs/contrast/modelnet40_crosspoint_cpu.yaml data.root=half/modelnet40 data.views=half/views \\
        train.epochs=6 evaluate.every=6 --out runs/half
    .venv/bin/python tests/long/contrast_halves.py score --clouds half.npz --points 512 runs/half runs/half@random

`score` fits a linear SVM to features of the half that was trained on and scores the other, for some C times the
variance of the features. `RUN@random` is the run's network with weights drawn anew by seed 0.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sightline import load_run
from sightline.parts.transforms.points import to_unit_sphere

COSTS = (3.0, 10.0, 30.0, 100.0)


def halve(clouds: Path, out: Path) -> None:
    """The training part alone, as a file of the same layout whose training and test parts are its halves."""
    with np.load(clouds) as held:
        arrays = dict(held)
    order = np.random.default_rng(7).permutation(len(arrays["y_train"]))
    first, second = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    for name in ("X", "y", "name"):
        whole = arrays[f"{name}_train"]
        arrays[f"{name}_train"], arrays[f"{name}_test"] = whole[first], whole[second]
    np.savez(out, **arrays)


def score(run: str, clouds: Path, num_points: int, neighbours: int | None, is_lowered: bool) -> dict[str, Any]:
    """Accuracy on the second half by C times the variance, of plain and of standardised features."""
    from sklearn.svm import SVC

    encoder = _encoder(run, neighbours)
    chosen = np.random.default_rng(0).permutation(1024)[:num_points]
    features, labels = {}, {}
    with np.load(clouds) as held:
        for part in ("train", "test"):
            points = to_unit_sphere(torch.from_numpy(held[f"X_{part}"][:, chosen].astype(np.float32)))
            features[part], labels[part] = _features(encoder, points, is_lowered), held[f"y_{part}"]
    found = {}
    for form in ("plain", "standardised"):
        mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-12
        known, asked = ((each - mean) / (deviation if form == "standardised" else 1) for each in features.values())
        variance = np.square(known).sum(1).mean()
        between, across = known @ known.T / variance, asked @ known.T / variance
        found[form] = {}
        for cost in COSTS:
            machine = SVC(kernel="precomputed", C=cost).fit(between, labels["train"])
            found[form][cost] = float((machine.predict(across) == labels["test"]).mean())
    return found


def _encoder(run: str, neighbours: int | None) -> Any:
    """The network of RUN, or of RUN@random, in evaluation, with a graph of as many neighbours."""
    folder, _, drawn = run.partition("@")
    encoder = load_run(Path(folder), checkpoint="last").model
    modules: list[Any] = list(encoder.modules())
    if drawn:
        torch.manual_seed(0)
        for module in (each for each in modules if hasattr(each, "reset_parameters")):
            module.reset_parameters()
    for module in (each for each in modules if neighbours is not None and hasattr(each, "num_neighbours")):
        module.num_neighbours, module.neighbours_at = neighbours, None
    return encoder.eval()


def _features(encoder: Any, points: Tensor, is_lowered: bool) -> np.ndarray:
    lowered: Any = torch.autocast("cpu", torch.bfloat16) if is_lowered else contextlib.nullcontext()
    with torch.no_grad(), lowered:
        rows = [encoder.encode(points=batch).float() for batch in points.split(64)]
    features: np.ndarray = torch.cat(rows).double().numpy()
    return features


def main() -> int:
    """Make the halves, or print the scores of some runs."""
    parser = argparse.ArgumentParser(description="Contrast on halves of a training part.")
    parser.add_argument("what", choices=("halve", "score"))
    parser.add_argument("runs", nargs="*", help="RUN or RUN@random")
    parser.add_argument("--clouds", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("half.npz"))
    parser.add_argument("--points", type=int, default=512)
    parser.add_argument("--neighbours", type=int, help="of a graph among these points, instead of the run's")
    parser.add_argument("--float32", action="store_true", help="instead of bf16")
    options = parser.parse_intermixed_args()
    if options.what == "halve":
        halve(options.clouds, options.out)
    for run in options.runs:
        found = score(run, options.clouds, options.points, options.neighbours, not options.float32)
        sys.stdout.write(f"{run}: {found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
