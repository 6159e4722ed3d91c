"""Contracts of all parts: types, facts, errors, signatures, registries and base classes; nothing here knows an area."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "public": {
        "arguments": "AssignerBlock BackboneBlock Count DataBlock FractionBelowOne HeadBlock ImageEncoder Index "
        "LengthUnit NeckBlock NonNegativeFloat PointEncoder PositiveFloat PositiveFraction Probability ReferencePoint "
        "Seed SuppressionBlock TransformBlock UpAxis Width",
        "dataset": "Dataset",
        "draws": "Draws",
        "errors": "CheckpointError ConfigError DataError PluginError UserError",
        "loss": "Loss",
        "metric": "MeanMetric Meter Metric SampleShares SampleSums State WorstSamples append_rows",
        "model": "Backbone Encoder Head Model Neck",
        "plugins": "load_plugin",
        "task": "Task",
        "transform": "Transform",
        "types": "Batch Copies DataInfo Field Sample SampleKey",
    }
}
"""Kind of part -> module of this folder -> its names; `public` are names of `import sightline` (`catalogue.py`)."""
