"""Cost of the SVM of `sightline probe`: reading kept features again, C by cross-validation, and scikit-learn's way.

    .venv/bin/python benchmarks/svm_probe.py [--train FILE --test FILE] [--rows 1000] [--rounds 3] [--json FILE]

The files are features of both parts as a probe keeps them (`RUN/features/train-*.npz`, `test-*.npz`); without them
9,843 and 2,468 made-up ones of width 2,048 and 40 classes. Bars, in CPU-seconds of all threads: 2 to read them again,
120 for the SVM of plain features with six values of C in five folds. The ratio is the time of
`GridSearchCV(SVC(kernel="linear"))` with the same folds and values of C over ours, on `--rows` of them, in rounds that
begin with either in turn; both must validate every C alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from benchmarks.turns import median_and_spread
from sightline.workbench.probe.classifiers import stratified_folds
from sightline.workbench.probe.features import FeatureCache, Features
from sightline.workbench.probe.svm import COSTS, SVM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if (options.train is None) != (options.test is None):
        parser.error("--train and --test go together")
    train, test = made_up() if options.train is None else (read(options.train), read(options.test))
    found: dict[str, Any] = {"train": train.rows.shape, "test": test.rows.shape}
    found["reading_again_s"] = reading_again(train, test)
    for form in ("no", "yes"):
        seconds, outcome = measure(partial(SVM(standardise=form), train, test))
        found[f"standardise_{form}_s"] = seconds
        found |= outcome.metrics
    few = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[: options.rows]))
    ratios = [compare_with_grid_search(few, test, ours_first=bool(number % 2)) for number in range(options.rounds)]
    found |= {"ratio": statistics.median(ratios), "ratios": ratios}
    print(f"reading again {found['reading_again_s']:.2f} s (bar: 2)")  # noqa: T201
    print(f"SVM {found['standardise_no_s']:.1f} s plain (bar: 120), {found['standardise_yes_s']:.1f} s standardised")  # noqa: T201
    print(f"grid search / ours, {len(few)} rows: {median_and_spread(ratios)}")  # noqa: T201
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


def read(file: Path) -> Features:
    with np.load(file, allow_pickle=False) as archive:
        return Features(archive["rows"], archive["labels"])


def reading_again(train: Features, test: Features) -> float:
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        for split, part in (("train", train), ("test", test)):
            cache.save({"split": split}, part)
        seconds, _ = measure(lambda: [cache.load({"split": split}) for split in ("train", "test")])
    return seconds


def compare_with_grid_search(few: Features, test: Features, *, ours_first: bool) -> float:
    """Return the grid search's CPU time over ours. Raises AssertionError where they validate a C differently."""
    folds = stratified_folds(few.labels, num_folds=5, seed=0)
    rows = few.rows.astype(np.float64)
    search = GridSearchCV(SVC(kernel="linear"), {"C": list(COSTS)}, cv=folds)
    runs = {"theirs": lambda: search.fit(rows, few.labels), "ours": lambda: SVM(standardise="no")(few, test)}
    spent = {name: measure(runs[name]) for name in (("ours", "theirs") if ours_first else ("theirs", "ours"))}
    validated = [row["cross_validated_accuracy"] for row in spent["ours"][1].details["table"]]
    assert np.allclose(validated, search.cv_results_["mean_test_score"], atol=1.5 / len(few)), "a C validates otherwise"
    return spent["theirs"][0] / spent["ours"][0]


def measure(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU-seconds of all threads, and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
