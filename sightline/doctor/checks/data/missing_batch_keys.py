"""Guard G6: keys that a data set promises and its samples lack, and keys that nothing reads."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.survey import PartSurvey, name_sample
from sightline.schema import nearest

__all__ = ["missing_batch_keys"]

CODE = "missing-batch-keys"
_NOT_READ_BY_NAME = ("sample_index", "offsets")


@check(code=CODE, moment="preflight")
def missing_batch_keys(context: Context) -> list[Finding]:
    """Every promised field is in every sample, and every key of a batch is there."""
    findings = [
        _of_samples(context, survey, name, missing)
        for survey in context.survey
        for name, missing in survey.absent.items()
    ]
    if not findings:
        findings += _of_batch(context)
    return findings or _unread(context)


def _of_samples(context: Context, survey: PartSurvey, name: str, missing: list[int]) -> Finding:
    is_partial = len(missing) < survey.num_sampled
    causes = ("data.missing_modality", "data.pairing") if is_partial else ("cfg.contract", "data.missing_modality")
    offered = sorted(survey.fields)
    return Finding(
        guard="G6",
        code=CODE,
        severity="error",
        summary=f"the data set promises '{name}', its samples lack it",
        cause=causes[0],
        alternatives=causes[1:],
        where=context.place("data", dataset=f"{context.config.data.name}/{survey.part.split}", sample=missing[0]),
        measured=f"{name_sample(survey.part.dataset, missing[0])} has {', '.join(offered) or 'nothing'}; "
        f"{len(missing)} of {survey.num_sampled} samples lack '{name}'",
        expected=f"'{name}' in every sample, as its info.fields says",
        action=f"return '{name}' from the data set, or take it out of info.fields{nearest(name, offered)}",
        evidence={"field": name, "looked_at": survey.extent},
    )


def _of_batch(context: Context) -> list[Finding]:
    """Keys that the reader promises and its batches lack: a collate or transform lost them."""
    rehearsal = context.rehearsal
    promised = context.built.data.train.reader.keys
    missing = sorted(promised - rehearsal.batch.keys()) if rehearsal.batch else []
    return [
        Finding(
            guard="G6",
            code=CODE,
            severity="error",
            summary=f"training batches lack '{name}', which their samples have",
            cause="cfg.contract",
            alternatives=("data.missing_modality", "data.padding"),
            where=context.place("data", dataset=f"{context.config.data.name}/train"),
            measured=f"a batch has {', '.join(sorted(rehearsal.batch))}",
            expected=", ".join(sorted(promised)),
            action=f"keep '{name}' in the data set's collate or get_batch",
            evidence={"field": name},
        )
        for name in missing
    ]


def _unread(context: Context) -> list[Finding]:
    rehearsal = context.rehearsal
    if not rehearsal.is_sound:
        return []
    by_metrics = {name for meter in context.built.selection.meters for name in meter.update.names}
    by_name = rehearsal.batch_reads | by_metrics
    if "features" in by_name:  # these fields travel inside it
        by_name |= set(context.built.data.train.dataset.info.features)
    reads = rehearsal.batch.keys() & by_name
    idle = [
        name
        for name in sorted(rehearsal.batch.keys() - reads)
        if name not in _NOT_READ_BY_NAME and not name.endswith("_mask")
    ]
    if not idle:
        return []
    return [
        Finding(
            guard="G6",
            code=CODE,
            severity="note",
            summary=f"nothing reads {', '.join(repr(name) for name in idle)} of a batch",
            cause="cfg.contract",
            where=context.place("data", dataset=f"{context.config.data.name}/train"),
            measured=f"model, losses and metrics read {', '.join(sorted(reads))}",
            expected="nothing; transforms may need these keys",
            action="leave it, or turn them off in the data set where reading them costs time",
        )
    ]
