"""What the SVM of `sightline probe` costs: reading kept features again, C by cross-validation, and scikit-learn's way.

    .venv/bin/python benchmarks/svm_probe.py [FEATURES] [--rows 1500] [--json FILE]

FEATURES is the folder of a probed run (`RUN/features`), of which the oldest training and test part are taken, those of
the run's own weights; without it 9,843 and 2,468 made-up features of width 2,048 and 40 classes. Bars, in CPU-seconds:
2 to read them again, 120 for the SVM of plain features with six values of C in five folds. The ratio is that of
`GridSearchCV(SVC(kernel="linear"))` with the same folds and values of C to ours, on `--rows` of them, and both must
validate every C alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from sightline.probe.cache import FeatureCache
from sightline.probe.features import Features
from sightline.probe.folds import stratified_folds
from sightline.probe.svm import COSTS, SVM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    train, test = made_up() if options.features is None else (oldest(options.features, s) for s in ("train", "test"))
    found: dict[str, Any] = {"train": train.rows.shape, "test": test.rows.shape}
    found["reading_again_s"] = reading_again(train, test)
    for form in ("no", "yes"):
        seconds, outcome = timed(lambda form=form: SVM(standardise=form)(train, test))
        found[f"standardise_{form}_s"] = seconds
        found |= outcome.metrics
    few = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[: options.rows]))
    found["ratios"] = [round_of(few, test) for _ in range(options.rounds)]
    found["ratio"] = statistics.median(found["ratios"])
    print(json.dumps(found, indent=1))  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def made_up() -> tuple[Features, Features]:
    """Classes about centres of their own, near enough to be mistaken for each other."""
    draws = np.random.default_rng(0)
    centres = draws.normal(size=(40, 2048))
    parts = []
    for count in (9843, 2468):
        labels = draws.integers(0, 40, count)
        rows = 0.1 * (centres[labels] + 6 * draws.normal(size=(count, 2048)))
        parts.append(Features(rows.astype(np.float32), labels))
    return parts[0], parts[1]


def oldest(folder: Path, split: str) -> Features:
    files = sorted(folder.glob(f"{split}-*.npz"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise SystemExit(f"{folder}: holds no features of the {split} part; run sightline probe first")
    with np.load(files[0], allow_pickle=False) as archive:
        return Features(archive["rows"], archive["labels"])


def reading_again(train: Features, test: Features) -> float:
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        for split, part in (("train", train), ("test", test)):
            cache.save({"split": split}, part)
        seconds, _ = timed(lambda: [cache.load({"split": split}) for split in ("train", "test")])
    return seconds


def round_of(few: Features, test: Features) -> float:
    """The grid search's CPU time over ours. Raises AssertionError where they validate a C differently."""
    folds = stratified_folds(few.labels, num_folds=5, seed=0)
    theirs, search = timed(
        lambda: GridSearchCV(SVC(kernel="linear"), {"C": list(COSTS)}, cv=folds).fit(
            few.rows.astype(np.float64), few.labels
        )
    )
    ours, outcome = timed(lambda: SVM(standardise="no")(few, test))
    validated = [row["cross_validated_accuracy"] for row in outcome.details["table"]]
    assert np.allclose(validated, search.cv_results_["mean_test_score"], atol=1.5 / len(few)), "a C validates otherwise"
    return theirs / ours


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of all threads, and what came of it."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
