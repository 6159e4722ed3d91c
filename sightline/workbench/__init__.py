"""Tools on runs: predict, evaluate, check, fit, compare, describe, probe, compress, study."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "prediction_writers": {"evaluate.saved_predictions": "LabelWriter"},
    "predictors": {
        "predict.classify": "classify",
        "predict.segment": "segment",
    },
    "probes": {
        "probe.classifiers": "knn linear svm",
        "probe.few_shot": "few_shot",
    },
    "searches": {
        "compress.search.baselines": "nsga2 random uniform uniform_protected",
        "compress.search.ddpg": "ddpg",
        "compress.search.knapsack": "greedy hessian hybrid knapsack",
    },
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
