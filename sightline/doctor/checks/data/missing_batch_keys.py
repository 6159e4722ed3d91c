"""Keys that a data set declares and its samples lack, and keys that nothing reads."""

from __future__ import annotations

from sightline.doctor.checks.data.broken_fields import broken_field
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import PartStatistics
from sightline.optional_members import TaskMembers
from sightline.schema import suggest

__all__ = ["missing_batch_keys"]

_NOT_READ_BY_NAME = ("sample_index", "offsets")


@check("G6", "missing-batch-keys", "preflight", config_path="data")
def missing_batch_keys(context: Context) -> list[Finding]:
    """Every declared field is in every sample, and every declared key is in the training batches.

    Finds: Keys that a data set declares and its samples lack, and keys that nothing reads.
    """
    findings = [
        _finding_samples(context, survey, name, missing)
        for survey in context.statistics
        for name, missing in survey.absent.items()
    ]
    if not findings:
        findings += _batch_findings(context)
    return findings or _unread_findings(context)


def _finding_samples(context: Context, survey: PartStatistics, name: str, missing: list[int]) -> Finding:
    is_partial = len(missing) < survey.num_sampled
    offered = sorted(survey.fields)
    return broken_field(
        missing_batch_keys,
        context,
        survey,
        name,
        "always there" if is_partial else "there",
        f"the data set declares '{name}', its samples lack it",
        sample=missing[0],
        measured=", ".join(offered) or "nothing",
        detail=f"; {len(missing)} of {survey.num_sampled} samples lack '{name}'",
        expected=f"'{name}' in every sample, as info.fields lists it",
        action=f"return '{name}' from the data set, or take it out of info.fields{suggest(name, offered)}",
    )


def _batch_findings(context: Context) -> list[Finding]:
    """Find keys that the reader declares and its batches lack: a collate or transform lost them."""
    dry_run = context.dry_run
    declared = context.built.data.train.reader.keys
    missing = sorted(declared - dry_run.batch.keys()) if dry_run.batch else []
    return [
        missing_batch_keys.finding(
            context,
            f"training batches lack '{name}', which their samples have",
            causes=("cfg.contract", "data.missing_modality", "data.padding"),
            split="train",
            measured=f"a batch has {', '.join(sorted(dry_run.batch))}",
            expected=", ".join(sorted(declared)),
            action=f"keep '{name}' in the data set's collate or get_batch",
            evidence={"field": name},
        )
        for name in missing
    ]


def _unread_findings(context: Context) -> list[Finding]:
    dry_run = context.dry_run
    if not dry_run.is_sound:
        return []
    by_metrics = {name for meter in context.built.selection_evaluator.metrics for name in meter.update.names}
    by_name = dry_run.batch_reads | by_metrics | TaskMembers.extra_batch_keys.get(context.built.job.task)
    if "features" in by_name:  # these fields travel inside it
        by_name |= set(context.built.data.train.dataset.info.features)
    reads = dry_run.batch.keys() & by_name
    unread = [
        name
        for name in sorted(dry_run.batch.keys() - reads)
        if name not in _NOT_READ_BY_NAME and not name.endswith("_mask")
    ]
    if not unread:
        return []
    return [
        missing_batch_keys.finding(
            context,
            f"nothing reads {', '.join(repr(name) for name in unread)} of a batch",
            severity="note",
            causes=("cfg.contract",),
            split="train",
            measured=f"model, task, losses and metrics read {', '.join(sorted(reads))}",
            expected="nothing; transforms may need these keys",
            action="leave it, or turn them off in the data set if reading them takes time",
        )
    ]
