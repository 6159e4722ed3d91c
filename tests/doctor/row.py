"""Row of the table of cases: a subject with or without a bug, what counts as naming it, and its healthy twin."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from tests.planted.trial import Alarm

KINDS = ("run", "module", "loop", "oracle", "script", "healthy", "rare", "program")
_CAUSES = {
    "predictions": "loss.sign loss.form loss.double_softmax loss.negatives loss.collapse data.target_encoding "
    "data.label_mapping model.constant_output eval.decode eval.absent_class",
    "samples": "loss.normaliser loss.weights model.cross_sample_leak data.pairing eval.aggregation",
    "parameters": "model.unregistered model.frozen_unintended model.activation model.init loss.detached loss.inplace "
    "optim.param_coverage optim.grad_accumulation optim.step_order dist.unused_params",
    "positions": "data.layout data.padding data.label_leak data.ignore_handling data.missing_modality model.structure "
    "cfg.axis_swap cfg.class_count",
    "statistics": "data.normalisation data.corrupt_sample model.norm_mode eval.mode clf.feature_scale",
    "state": "ckpt.key_mismatch ckpt.corrupt ckpt.race ckpt.incomplete_state ckpt.stale ckpt.alias ckpt.selection "
    "ckpt.unsafe optim.state optim.scheduler dist.collective_mismatch dist.sync",
    "reading": "data.split data.ordering data.sampling data.imbalance data.duplicate_randomness data.item_mutation "
    "data.empty_loader data.path data.stale_cache data.throughput dist.sampler dist.seed eval.protocol",
    "geometry": "data.augment_target_mismatch data.projection data.centre model.geometry eval.coordinate",
    "numerics": "model.numerics optim.nonfinite optim.amp optim.clip",
    "oracles": "",
    "run": "cfg.type cfg.unknown_key cfg.override cfg.contract optim.lr optim.hyper sys.backend sys.nondeterminism "
    "sys.resource sys.environment report.table report.budget report.provenance dist.device dist.pickle dist.logging "
    "dist.hook dist.leftover dist.port",
    "area": "assign.anchor_coverage assign.unmatched_gt assign.ignore assign.box_format assign.codec "
    "quant.empty_cluster quant.no_effect quant.policy quant.calibration quant.distill quant.accounting "
    "quant.state_leak",
}
FAMILIES = tuple(_CAUSES)
FAMILY_BY_CAUSE = {cause: family for family, causes in _CAUSES.items() for cause in causes.split()}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Case of the table.

    `run` gets a seed and the keys of its twin's alarms, and returns alarms, notes and failed measurements. Of a bug any
    of `causes` counts as named; none: it is not known what would. `names` is a regular expression for messages without
    a cause. With `words` a finding counts only if it has one of them: a tensor, a call or a setting of the bug's line;
    a note with one counts, too. `twin` is the id of the same subject without the bug.
    """

    id: str
    kind: str
    run: Callable[[int, Container[tuple[str, str]]], tuple[Alarm, ...]] = field(repr=False)
    has_bug: bool = False
    causes: tuple[str, ...] = ()
    family: str = ""
    names: str = ""
    words: tuple[str, ...] = ()
    twin: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        family = self.family or FAMILY_BY_CAUSE[self.causes[0]]
        assert self.kind in KINDS, f"row {self.id} has the kind {self.kind}"
        assert family in FAMILIES, f"row {self.id} has the family {family}"
        object.__setattr__(self, "family", family)

    def accepts(self, alarm: Alarm) -> bool:
        """Return True for a finding that counts, if the twin does not have it, too."""
        if not self.words:
            return alarm.severity not in ("note", "failed")
        is_named = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", alarm.text, re.IGNORECASE) for word in self.words)
        return is_named and alarm.severity != "failed"
