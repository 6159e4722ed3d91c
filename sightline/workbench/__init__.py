"""Tools on runs: predict, evaluate, check, fit, compare, describe, probe, compress, series of trainings."""

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
    "public": {
        "compress.problem": "SearchProblem",
        "compress.search.base": "MaxEvaluations PolicyEvaluator Search",
        "predict.predictor": "Inference Predictor ReadFile Refusal refuse_non_finite",
        "probe.methods": "Probe",
    },
    "rules": {
        "compress.rules": "broken-codebook quantised-outputs rounding-gradient size-promise unfit-teacher "
        "unquantised-weights"
    },
    "searches": {
        "compress.search.ddpg": "ddpg",
        "compress.search.greedy": "greedy",
        "compress.search.hessian": "hessian",
        "compress.search.hybrid": "hybrid",
        "compress.search.knapsack": "knapsack",
        "compress.search.nsga2": "nsga2",
        "compress.search.random": "random",
        "compress.search.uniform": "uniform uniform_protected",
    },
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
