"""Scans of which an evaluation scores other points than the data set gives."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_evaluation import DryEvaluation
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import describe_sample, read_samples

__all__ = ["unscored_points"]

_MOST_SAMPLES = 2


@check(
    "G16", "unscored-points", "preflight", causes=("eval.protocol", "data.sampling"), config_path="transforms.evaluate"
)
def unscored_points(context: Context) -> list[Finding]:
    """Of range images every point of a scan is scored, by its own label, in the data set's order."""
    found = (_of_part(context, each) for each in context.dry_evaluations if each.failure is None)
    return [finding for finding in found if finding is not None]


def _of_part(context: Context, each: DryEvaluation) -> Finding | None:
    offsets, target = each.predictions.get("cloud_offsets"), each.predictions.get("target")
    if "range_image" not in each.batch or offsets is None or target is None:
        return None
    keys = each.keys[:_MOST_SAMPLES]
    scored = target.cpu().split(offsets.diff().tolist())
    for key, sample, own in zip(keys, read_samples(each.part.dataset, keys), scored, strict=False):
        label = sample["label"].cpu()
        num_wrong = abs(len(own) - len(label)) if len(own) != len(label) else int((own != label).sum())
        if num_wrong:
            return unscored_points.finding(
                context,
                f"{len(own)} points are scored of a scan of {len(label)}"
                + (", some by the labels of others" if len(own) == len(label) else ""),
                split=each.part.split,
                sample=key.index,
                measured=f"{num_wrong} points of {describe_sample(each.part.dataset, key.index)} not scored "
                "by their label",
                expected="every point once: figures over a part of them cannot be compared with published ones",
                action="take what drops, repeats or reorders points out of transforms.evaluate",
                evidence={"field": "target"},
            )
    return None
