"""Scans of which an evaluation scores other points than the data set contains."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_evaluation import DryEvaluation
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import describe_sample, read_samples

__all__ = ["unscored_points"]

_MAX_SAMPLES = 2


@check(
    "G16", "unscored-points", "preflight", causes=("eval.protocol", "data.sampling"), config_path="transforms.evaluate"
)
def unscored_points(context: Context) -> list[Finding]:
    """Evaluations of range images score every point of a scan, by its own label, in the data set's order.

    Finds: Scans of which an evaluation scores other points than the data set contains.
    """
    findings = (_finding_part(context, dry) for dry in context.dry_evaluations if dry.failure is None)
    return [finding for finding in findings if finding is not None]


def _finding_part(context: Context, evaluation: DryEvaluation) -> Finding | None:
    offsets, target = evaluation.predictions.get("cloud_offsets"), evaluation.predictions.get("target")
    if "range_image" not in evaluation.batch or offsets is None or target is None:
        return None
    keys = evaluation.keys[:_MAX_SAMPLES]
    scored = target.cpu().split(offsets.diff().tolist())
    for key, sample, scored_labels in zip(keys, read_samples(evaluation.part.dataset, keys), scored, strict=False):
        label = sample["label"].cpu()
        num_wrong = (
            abs(len(scored_labels) - len(label))
            if len(scored_labels) != len(label)
            else int((scored_labels != label).sum())
        )
        if num_wrong:
            return unscored_points.finding(
                context,
                f"{len(scored_labels)} points are scored of a scan of {len(label)}"
                + (", some by the labels of others" if len(scored_labels) == len(label) else ""),
                split=evaluation.part.split,
                sample=key.index,
                measured=f"{num_wrong} points of {describe_sample(evaluation.part.dataset, key.index)} not scored "
                "by their label",
                expected="every point once: metrics over some of the points cannot be compared with published ones",
                action="remove transforms that drop, repeat or reorder points from transforms.evaluate",
                evidence={"field": "target"},
            )
    return None
