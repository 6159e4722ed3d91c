"""Registration of a user's own parts: `@sightline.register.model("my_net")` makes a class a model of that name.

There is one function a kind. A config then names the part; its constructor's keyword-only arguments are what the config
may give. A class derives from the base class of its kind: a model from `sightline.Model`, a data set from
`sightline.Dataset`.
"""

from __future__ import annotations

from sightline.contract import registry

__all__ = [
    "assigner",
    "backbone",
    "data",
    "head",
    "image_encoder",
    "loss",
    "metric",
    "model",
    "neck",
    "optimizer",
    "point_encoder",
    "predictor",
    "probe",
    "reference",
    "schedule",
    "search",
    "suppression",
    "task",
    "transform",
]

data = registry.data.add
model = registry.models.add
point_encoder = registry.point_encoders.add
image_encoder = registry.image_encoders.add
backbone = registry.backbones.add
neck = registry.necks.add
head = registry.heads.add
reference = registry.references.add
assigner = registry.assigners.add
suppression = registry.suppressions.add
task = registry.tasks.add
loss = registry.losses.add
metric = registry.metrics.add
transform = registry.transforms.add
optimizer = registry.optimizers.add
schedule = registry.schedules.add
predictor = registry.predictors.add
probe = registry.probes.add
search = registry.searches.add
