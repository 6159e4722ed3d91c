"""Check of the codec of boxes: what a loss asks for, decoded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import Evidence
from sightline.ops.box_overlaps import box_sizes, iou
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.loss_subjects import LossSubject, make_loss_subjects

_MIN_DECODED_IOU, _CERTAIN = 0.95, 50.0


def box_losses(context: Context) -> list[LossSubject]:
    """List the losses of codes whose best values are known."""
    return [loss for loss in make_loss_subjects(context) if loss.term.wanted]


@check(
    "decoded-boxes",
    "preflight",
    each=box_losses,
    causes=("assign.codec", "assign.box_format", "eval.decode"),
    config_path="task",
    expected="the labelled boxes",
    action="decode by the inverse of what the loss encodes: with the same deviations, order and priors",
)
def decoded_boxes(context: Context, loss: LossSubject) -> Fault | None:
    """The codes at which a loss of boxes is least are decoded to the labelled boxes.

    Finds: Detections decoded with other deviations, another order or other priors than training encodes boxes with.
    """
    task, batch = unwrap_distillation(context.built.job.task), context.dry_run.batch
    evidence = Evidence({"subject": loss.subject, "term": loss.term}, math.inf)
    aims = attempt("aims", evidence.get, {"name": "aims"})
    codes, is_valid = loss.term.wanted["codes"]
    if isinstance(aims, MissingError) or codes.ndim != 3 or not all(aim.is_least for aim in aims):
        return None
    has_box, boxes = is_valid.any(dim=2), loss.subject.batches[0].target["matched_boxes"]
    for image in has_box.any(dim=1).nonzero().flatten().tolist()[:1]:
        scores = torch.where(has_box[image], _CERTAIN, -_CERTAIN)
        outputs = {"logits": scores[None, :, None], "codes": codes[image : image + 1]}
        outputs |= {name: scores[None] for name in ("objectness", "centreness") if name in context.dry_run.seen_outputs}
        priors = task.get_priors(batch["image"].to(boxes.device))
        decoded = task.selection.decode(outputs, 0, priors)
        is_wanted = has_box[image, decoded.proposal]  # a `min_score` of 0 selects the others, too
        index = decoded.proposal[is_wanted]
        found, wanted = decoded.detections[is_wanted, :4].double(), boxes[image, index].double()
        overlap = float(iou(found, wanted).median()) if len(found) else 0.0
        if overlap < _MIN_DECODED_IOU:
            return Fault(
                f"codes at which the loss '{loss.name}' is least are decoded to other boxes",
                measured=f"median IoU {overlap:.2f} with the boxes of {len(found)} priors; widths "
                f"{_ratio(found, wanted)} times theirs; largest code {float(codes[image, index].abs().max()):.3g}",
                evidence={"field": "codes"},
            )
    return None


def _ratio(found: Tensor, wanted: Tensor) -> str:
    ratio = box_sizes(found)[:, 0] / box_sizes(wanted)[:, 0]
    return " to ".join(f"{float(value):.3g}" for value in ratio.aminmax()) if len(ratio) else "none"
