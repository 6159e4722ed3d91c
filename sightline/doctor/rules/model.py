"""Rules of a model's passes: what repeats, what depends on what, what is trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sightline.contract.errors import join_some
from sightline.contract.pytree import dense_leaves, is_float
from sightline.doctor.evidence.backward import WrongSlope
from sightline.doctor.evidence.coverage import Gradients, Unreached
from sightline.doctor.evidence.graph import Reshape, Softmax
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.evidence.passes import Repeat
from sightline.doctor.evidence.positions import PaddedSteps, Reach
from sightline.doctor.evidence.rectified import ENOUGH, Rectified
from sightline.doctor.evidence.samples import SharedRows
from sightline.doctor.finding import Fault, FindingLocation, Severity
from sightline.doctor.rules import rule
from sightline.doctor.rules.loss import compare_start
from sightline.doctor.subject import Pass, Subject


@rule(
    "first-step",
    "error",
    "data.layout cfg.contract cfg.class_count",
    holds="a batch that model and loss accept",
    do="compare the shapes, types and classes of the batch with what model and loss take",
)
def first_step(first_failure: str) -> Iterator[Fault]:
    """Report a first batch that ends in an error: no other relation can judge it."""
    if first_failure:
        is_label = "out of bounds" in first_failure or "out of range" in first_failure
        yield Fault(
            "the first batch cannot be run",
            measured=first_failure.removeprefix("the first batch: "),
            causes=("data.label_mapping", "cfg.class_count") if is_label else (),
            action="compare labels with the model's outputs: a label is 0 at least, and less than the number of classes"
            if is_label
            else "",
        )


@rule(
    "no-gradient",
    "warning",
    "model.frozen_unintended",
    holds="a layer is trained or frozen as a whole",
    do="freeze a module by requires_grad_(False) of the module, or unfreeze all of it",
)
def frozen_in_part(subject: Subject, gradients: Gradients) -> Iterator[Fault]:
    """Name weights of more than one axis that want no gradient, in a layer whose other parameters get one.

    Where few layers train their weights beside those, training biases alone is the method.
    """
    weights = [
        (f"{path}.{name}".lstrip("."), own)
        for path, module in subject.model.named_modules()
        for name, own in module.named_parameters(recurse=False)
        if own.ndim > 1
        and any(
            gradients.own.get(f"{path}.{other}".lstrip(".")) == "some"
            for other, _ in module.named_parameters(recurse=False)
        )
    ]
    names = [name for name, own in weights if not own.requires_grad]
    if 0 < len(names) <= len(weights) / 2:
        yield Fault(
            f"{len(names)} weight(s) are frozen beside trained parameters of a layer: {join_some(names, most=4)}",
            measured="requires_grad is False for a weight, and True beside it",
            where=FindingLocation(param=names[0]),
        )


@rule(
    "layer-gradient",
    "error",
    "model.numerics loss.inplace",
    holds="a backward pass gives the slope of its forward pass",
    do="correct backward(), with torch.autograd.gradcheck; declare an intended surrogate by "
    "@sightline.surrogate_gradient",
)
def layer_gradient(wrong_slopes: list[WrongSlope]) -> Iterator[Fault]:
    """Name the autograd functions whose backward pass is not the derivative of their forward pass."""
    for wrong in wrong_slopes:
        yield Fault(
            f"the backward pass of '{wrong.name}' is not the derivative of its forward pass",
            measured=f"{wrong.given:.4g} along a line on which finite differences give {wrong.measured:.4g}, "
            "in float64",
        )


@rule(
    "shared-weights",
    "warning",
    "model.structure model.unregistered",
    holds="each place of a list of layers has a layer of its own",
    do="make a module for each place: a list repeated with * repeats the module itself",
)
def repeated_layer(subject: Subject, passed: Pass) -> Iterator[Fault]:
    """Name the modules with weights that stand at several places of one list."""
    for path, module in subject.model.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            continue
        places: dict[int, list[str]] = {}
        for name, child in module._modules.items():
            if child is not None and any(True for _ in child.parameters()):
                places.setdefault(id(child), []).append(f"{path}.{name}".lstrip("."))
        for names in places.values():
            if len(names) > 1:
                yield Fault(
                    f"the layers {join_some(names, most=4)} are one and the same, with one set of weights",
                    measured=f"one module at {len(names)} places of a list",
                    where=FindingLocation(layer=names[0]),
                )
                return


_ON_NOISE = (
    "if figures of evaluation are to repeat, return the mean of what is drawn where self.training is false, or seed "
    "torch before each evaluation"
)


@rule(
    "random-evaluation",
    "error",
    "eval.mode sys.nondeterminism",
    holds="outputs in evaluation mode do not depend on the seed of the random numbers",
    do="give F.dropout its training=self.training; draw other noise in training mode alone, if figures are to repeat",
)
def random_evaluation(repeats: dict[str, Repeat], drops_in_evaluation: bool) -> Iterator[Fault]:
    """Compare two passes in evaluation mode with one seed each; draws that are no dropout may be meant: a note."""
    repeat = repeats["eval"]
    for path, first in repeat.first.items():
        other = repeat.reseeded.get(path)
        if other is None or other.shape != first.shape or torch.equal(first, other):
            continue
        if not torch.equal(first, repeat.again[path]):
            continue  # not even equal seeds give equal outputs: another rule's matter
        size = float((first.double() - other.double()).abs().max())
        yield Fault(
            f"the output{f' {path}' if path else ''} in evaluation mode depends on the seed",
            measured=f"two seeds differ by up to {size:.3g}, equal seeds by 0",
            severity=None if drops_in_evaluation else "note",
            action="" if drops_in_evaluation else _ON_NOISE,
        )
        return


@rule(
    "unregistered",
    "error",
    "model.unregistered",
    holds="each tensor that wants a gradient in the model's graph is one of model.parameters()",
    do="keep layers in nn.ModuleList or nn.ModuleDict, and tensors as nn.Parameter attributes",
)
def unregistered(loose_leaves: dict[str, Tensor]) -> Iterator[Fault]:
    """Name the leaves of the outputs' graph that model.parameters() does not have."""
    if loose_leaves:
        yield Fault(
            f"outputs depend on {len(loose_leaves)} tensor(s) that want gradients and are not registered: "
            f"{join_some(list(loose_leaves), most=4)}",
            measured=f"{len(loose_leaves)} tensor(s) with a gradient are in no parameters()",
        )


@rule(
    "no-gradient",
    "warning",
    "model.frozen_unintended loss.detached model.structure",
    holds="a gradient for each parameter that the optimiser, or the loss, holds",
    do="look for detach(), no_grad or an output that no loss reads; freeze on purpose with requires_grad_(False)",
)
def unreached_parameters(unreached: list[Unreached]) -> Iterator[Fault]:
    """Name parameters that have no gradient after backward passes, by why that may be.

    Whether they would move the loss is not asked, as it is of a copy: a loop, or a run, updates what it holds.
    """
    for owner, names, total, why, num_passes in unreached:
        if why == "all":
            yield Fault(
                f"no parameter of {owner} gets a gradient: the loss does not depend on the model",
                measured="every gradient is None after backward()",
                causes=("loss.detached", "model.frozen_unintended"),
                severity="error",
                action="look for detach(), no_grad, .data, numpy() or argmax between the model and the loss",
            )
            continue
        reason, causes, severity = _REASONS[why]
        yield Fault(
            f"{len(names)} parameter(s) of {owner} get no gradient: {join_some(names, most=5)}",
            measured=f"none of {total} after {num_passes} backward pass(es): {reason}",
            causes=causes.split(),
            severity=severity,
            where=FindingLocation(param=names[0], layer=names[0].rpartition(".")[0] or None),
        )


_REASONS: dict[str, tuple[str, str, Severity | None]] = {
    "run": ("their layers run, but the loss does not depend on them", "", None),
    "are cut": (
        "their layers run, and nothing freezes them, but the loss does not depend on them",
        "loss.detached model.structure",
        None,
    ),
    "never run": ("their layers never run", "model.structure", None),
    "are chosen": ("their layers never run; others of their kind run at some updates", "model.structure", "note"),
    "are frozen": ("requires_grad is False for all that the optimizer holds", "model.frozen_unintended", "error"),
    "unused": ("the loss that holds them does not depend on them", "loss.detached model.structure", "error"),
}
"""By why parameters have no gradient: the words, and causes and severity, if not those of the rule."""


@rule(
    "no-gradient",
    "error",
    "loss.detached model.structure",
    holds="a parameter that moves the loss gets a gradient from it",
    do="remove the detach(), no_grad(), round(), argmax() or .data between the parameter and the loss",
)
def no_gradient(subject: Subject, gradients: Gradients, silent: dict[str, bool], dropped: list[str]) -> Iterator[Fault]:
    """Name parameters that move the loss and get no gradient; those of a copy of trained ones are a teacher's.

    Some move it in evaluation mode alone, since while training everything behind them is dropped.
    """
    if dropped:
        layers = [n for n, m in subject.model.named_modules() if isinstance(m, _DropoutNd) and m.p == 1]
        name = f", '{layers[0]}' with p=1" if layers else ""
        yield Fault(
            f"while training, all that {len(dropped)} parameter(s) compute is dropped{name}: "
            f"{join_some(dropped, most=4)}",
            measured="in training mode, in 16 passes at jittered weights, the gradient is exactly 0; in evaluation "
            "mode it is not",
            causes=("model.structure", "loss.detached"),
            action="set the p of a dropout, which is the share that is dropped, far below 1",
            where=FindingLocation(param=dropped[0], layer=layers[0] if layers else None),
        )
    held = {id(p) for optimizer in subject.optimizers for group in optimizer.param_groups for p in group["params"]}
    own = dict(subject.model.named_parameters())
    trained = [own[name] for name in gradients.own if name not in silent]
    names = [
        name
        for name, moves in silent.items()
        if moves
        and (not held or id(own[name]) in held)
        and not any(own[name].shape == other.shape and torch.equal(own[name], other) for other in trained)
    ]
    if names and trained:
        yield Fault(
            f"{len(names)} parameter(s) move the loss and get no gradient: {join_some(names, most=4)}",
            measured="at the model's weights and at jittered ones, in each batch, the gradient is exactly 0 or None",
            where=FindingLocation(param=names[0]),
        )


@rule(
    "no-gradient",
    "error",
    "model.init model.structure",
    holds="parameters that want gradients get one at the weights that training starts from, or after the first steps",
    do="initialise one factor of each product at random, and the other one with zeros; call what initialises adapters "
    "before it is put aside, or after they are put in",
)
def factors_of_zero(saddles: list[str]) -> Iterator[Fault]:
    """Name the parameters that are zero and are multiplied with one another: none of them ever gets a gradient."""
    if len(saddles) > 1:
        yield Fault(
            f"{len(saddles)} parameters are zero and keep one another from being trained: {join_some(saddles, most=4)}",
            measured="their gradients are exactly 0 in each batch, also after a step; with noise in them they are not",
            where=FindingLocation(param=saddles[0]),
        )


@rule(
    "unused-parameters",
    "warning",
    "model.structure dist.unused_params",
    holds="the loss depends on each parameter that wants a gradient",
    do="call the layer in forward(), return what it computes to the loss, or remove it",
)
def unused_parameters(
    subject: Subject,
    gradients: Gradients,
    silent: dict[str, bool],
    read_by_loss: frozenset[str],
    left_out: frozenset[str],
) -> Iterator[Fault]:
    """Name parameters outside of the graph, where others are inside; a list of experts is read in part."""
    own = dict(subject.model.named_parameters())
    inside = {id(own[name]) for name, state in gradients.own.items() if state != "none"}
    groups = [{id(p) for group in each.param_groups for p in group["params"]} for each in subject.optimizers]
    held = {key for keys in groups if keys & inside for key in keys}
    patterns = {name: re.sub(r"\d+", "#", name) for name in gradients.own}
    used = Counter(patterns[name] for name, state in gradients.own.items() if state != "none")
    unused = Counter(patterns[name] for name, state in gradients.own.items() if state == "none")
    names = [
        name
        for name, moves in silent.items()
        if gradients.own[name] == "none"
        and not moves
        and unused[patterns[name]] > used[patterns[name]]
        and id(own[name]) in (held or {id(own[name])})
    ]
    names = [name for name in names if name not in read_by_loss | left_out]
    if names and len(names) < len(gradients.own):
        yield Fault(
            f"the loss does not depend on {len(names)} parameter(s): {join_some(names, most=4)}",
            measured="no path in the graph of any batch, and no change of the loss as they move",
            where=FindingLocation(param=names[0]),
        )


@rule(
    "no-gradient",
    "error",
    "loss.detached loss.form",
    holds="the loss has a gradient at the model's weights",
    do="look for a loss of counts, argmax or comparisons, a detach(), or a clamp that all values are beyond",
)
def nothing_learnt(subject: Subject, gradients: Gradients) -> Iterator[Fault]:
    """Report a loss whose gradient is exactly 0 at all weights and batches, or at those of two factors that are 0."""
    if not gradients.own:
        yield Fault(
            "the optimizer holds parameters of this model, all of which are frozen: nothing can be learnt",
            measured="requires_grad is False for each of its parameters",
            causes=("model.frozen_unintended",),
            action="call model.requires_grad_(True) where its own turn to be updated begins",
        )
    own, states = {*gradients.own.values()}, {*gradients.own.values(), *gradients.moved.values()}
    trained = [p.detach() for name, p in subject.model.named_parameters() if name in gradients.own]
    if "some" in states and own <= {"none", "zero"} and len(trained) > 1 and not any(bool(p.any()) for p in trained):
        yield Fault(
            f"every gradient is exactly 0, and so is all that is trained: {join_some(list(gradients.own), most=4)}",
            measured=f"gradients and values of {len(trained)} parameters are 0; at other values there are gradients",
            causes=("model.init",),
            expected="one of two factors that is not 0: the gradient of each is a product with the other",
            action="draw one factor of an adapter at random, also where layers are initialised after it is put in",
            where=FindingLocation(param=next(iter(gradients.own))),
        )
    if states and states <= {"none", "zero"}:
        yield Fault(
            "every gradient of the loss is exactly 0: nothing can be learnt",
            measured=f"{len(gradients.own)} parameters at their own and at jittered weights",
        )


@rule(
    "evaluation-state",
    "error",
    "eval.mode model.norm_mode",
    holds="a pass in evaluation mode changes no number with a fraction of the model",
    do="change statistics only where self.training is true",
)
def evaluation_state(subject: Subject, passed: Pass, repeats: dict[str, Repeat]) -> Iterator[Fault]:
    """Name the floating-point buffers and parameters that a pass in evaluation mode changes.

    A forward pass that returns the loss alone, or moves frozen parameters, which keeps an average of the trained ones,
    is a step of training, and nobody may call it to evaluate.
    """
    returned = [tensor for _, tensor in dense_leaves(passed.outputs)]
    is_training_alone = len(returned) == 1 and returned[0].numel() == 1
    state = subject.model.state_dict()
    names = [name for name in repeats["eval"].changed if is_float(state.get(name))]
    frozen = {name for name, parameter in subject.model.named_parameters() if not parameter.requires_grad}
    if names:
        yield Fault(
            f"a pass in evaluation mode changes {join_some(names, most=4)}",
            measured=f"{len(names)} tensors of the state differ afterwards",
            severity="note" if is_training_alone or frozen.intersection(names) else None,
        )


@rule(
    "data-mutation",
    "error",
    "data.item_mutation",
    holds="the model leaves its inputs as they are",
    do="replace operations in place (mul_, relu_, inplace=True, x[...] =) on inputs by those that return a new tensor",
)
def data_mutation(written_inputs: list[str]) -> Iterator[Fault]:
    """Name the inputs that a pass changes."""
    if written_inputs:
        names = join_some([path or "the input" for path in written_inputs], most=4)
        yield Fault(f"forward() changes {names} in place", measured="inputs differ after a pass")


@rule(
    "exchanged-axes",
    "error",
    "data.layout model.geometry model.structure",
    holds="a view merges or splits neighbouring axes; other orders need transpose or permute first",
    do="transpose or permute before the view or reshape",
)
def exchanged_axes(reshapes: list[Reshape]) -> Iterator[Fault]:
    """Name the views whose sizes only an exchange of axes explains."""
    for before, after, layer in reshapes[:1]:
        yield Fault(
            f"view or reshape turns {before} into {after}: values of different places are mixed",
            measured=f"'{layer}' is called with the memory of the model's inputs, in sizes of another order"
            if layer
            else f"{len(reshapes)} such views in the graph of the loss",
            where=FindingLocation(layer=layer or None),
        )


@rule(
    "attention",
    "error",
    "model.structure",
    holds="weights of a softmax sum to 1 along the axis that they are multiplied along",
    do="take the softmax over the axis of the keys, mostly dim=-1",
)
def softmax_axis(softmaxes: list[Softmax]) -> Iterator[Fault]:
    """Name the softmaxes along an axis that the product does not sum over."""
    for found in softmaxes[:1]:
        yield Fault(
            f"a softmax along axis {found.axis} of {found.shape} is multiplied along axis {found.multiplied}",
            measured=f"{len(softmaxes)} such products in the graph of the loss",
        )


@rule(
    "cross-sample-leak",
    "error",
    "model.cross_sample_leak model.norm_mode model.geometry",
    holds="in evaluation mode what the model returns for a sample does not depend on the others of its batch",
    do="look for batch_first, a view that mixes samples, a norm or softmax over axis 0, or one place for each row",
)
def cross_sample_leak(subject: Subject, neighbours: list[Reach]) -> Iterator[Fault]:
    """Name the outputs of samples that move as other samples do; norms without running statistics are meant to."""
    norms = [module for module in subject.model.modules() if isinstance(module, _BatchNorm)]
    is_meant = any(module.running_mean is None for module in norms)
    for path, size, module in neighbours[:1]:
        inside = f"; inside of the model, '{module}' is the first that mixes them" if module else ""
        yield Fault(
            f"what the model returns for a sample depends on the other samples{f': {path}' if path else ''}",
            measured=f"with other samples beside it, it moves by {size:.3g} of its spread; with the same ones by 0"
            + inside,
            where=FindingLocation(layer=module or None),
            severity="note" if is_meant else None,
        )


@rule(
    "attention",
    "error",
    "model.structure data.label_leak",
    holds="outputs of a step do not depend on later steps, where the target is the next step",
    do="mask later steps (is_causal=True, a triangular mask), or read them in one direction",
)
def sees_ahead(later_steps: list[Reach]) -> Iterator[Fault]:
    """Name the outputs that move as later steps do."""
    for path, size, _ in later_steps[:1]:
        yield Fault(
            f"the model sees what comes next{f': {path}' if path else ''}",
            measured=f"with other later steps, outputs of earlier ones move by {size:.3g} of their spread",
        )


@rule(
    "attention",
    "error",
    "data.padding model.structure",
    holds="padded places do not reach outputs of true ones, and true ones reach each other",
    do="give the mask in the form that its call wants: key_padding_mask of nn.MultiheadAttention is True at padding, a "
    "mask of scaled_dot_product_attention True at what is read",
)
def padding_mask(padded_steps: PaddedSteps) -> Iterator[Fault]:
    """Find a mask upside down, and a mask among the inputs that leaves padding in."""
    reached, is_read, has_mask, layer = padded_steps
    size = max((reach.size for reach in reached), default=0.0)
    measured = f"outputs of true places move by {size:.3g} of their spread with other padding"
    same = "the rows that it reads are the same in all samples, those that it leaves out are not"
    if layer or (reached and not is_read):
        yield Fault(
            "the padding mask is upside down: padding reaches outputs, and what is there does not",
            measured=same if layer else f"{measured}, and by 0 with other true places",
            where=FindingLocation(layer=layer or None),
        )
    elif reached and has_mask:
        yield Fault(
            "a padding mask is given, and padding reaches outputs of true places", measured=measured, severity="warning"
        )


@rule(
    "padded-points",
    "warning",
    "data.padding model.structure",
    holds="outputs of a sample are those of its true length, however far its batch is padded",
    do="take means, extremes and statistics over true places alone: a mask of the lengths, or packed sequences",
)
def padding_counts(longer_padding: list[Reach]) -> Iterator[Fault]:
    """Find outputs that depend on how long the longest sample of the batch is, though lengths are given."""
    for path, size, _ in longer_padding[:1]:
        yield Fault(
            f"lengths are given, and what the model returns depends on the padding{f': {path}' if path else ''}",
            measured=f"with other padding, outputs of the samples move by {size:.3g} of their spread",
        )


@rule(
    "label-input",
    "error",
    "data.label_leak",
    holds="no channel of the inputs tells the target",
    do="leave the channel out of the inputs",
)
def label_input(label_columns: list[str]) -> Iterator[Fault]:
    """Name the channels that tell the target."""
    if label_columns:
        yield Fault(
            f"the target is among the inputs: {join_some(label_columns, most=3)}",
            measured="the target itself, or one number for each of its classes, in every batch read",
        )


@rule(
    "constant-output",
    "error",
    "model.constant_output model.structure model.activation data.item_mutation",
    holds="outputs of unlike samples differ, once the weights are moved a little",
    do="look for a factor of 0, a dead activation, an input that forward does not use, a pooling over everything",
)
def constant_output(shared_rows: SharedRows) -> Iterator[Fault]:
    """Name the outputs that are the same for all samples; one beside others may be of learnt anchors: a note."""
    paths, others, passes = shared_rows
    if paths:
        jittered = "in evaluation mode, each time the weights were jittered anew"
        yield Fault(
            f"the outputs do not depend on the inputs: {join_some(paths, most=3)}",
            measured="equal bits for all samples, whose inputs differ, "
            + (f"in {passes} measured passes in a row" if passes else jittered),
            severity="note" if others else None,
            evidence={"mode": "first"} if others else {},
        )


@rule(
    "shared-weights",
    "warning",
    "model.structure model.unregistered",
    holds="a norm of its own behind each layer",
    do="make a norm for each place, or register the one that is meant to be shared once",
)
def repeated_norm(subject: Subject) -> Iterator[Fault]:
    """Name the batch norms that stand at several places."""
    norms: dict[int, list[str]] = {}
    for path, module in subject.model.named_modules():
        for name, child in module._modules.items():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                norms.setdefault(id(child), []).append(f"{path}.{name}".lstrip("."))
    for names in (names for names in norms.values() if len(names) > 1):
        yield Fault(
            f"{join_some(names, most=4)} are one norm, whose statistics mix those of several layers",
            measured=f"one module under {len(names)} names",
            where=FindingLocation(layer=names[0]),
        )


@rule(
    "final-activation",
    "warning",
    "model.activation model.init",
    holds="outputs that a loss compares with numbers can be these numbers, and pass a gradient where they are 0",
    do="end the network with a layer without a ReLU or clamp behind it; or with softplus, for targets above 0",
    is_statistical=True,
)
def rectified_outputs(rectified: list[Rectified]) -> Iterator[Fault]:
    """Name the layer behind which a ReLU keeps a third of the outputs from their targets."""
    for each in rectified:
        name, where = f" '{each.path}'" if each.path else "", FindingLocation(layer=each.layer or None)
        summary = f"a {each.operation.lower()} ends the network: it keeps outputs{name} from their targets"
        blocked = f"at {each.blocked:.0%} of {each.number:,} targets that are not 0 the output is exactly 0, with a "
        blocked += "gradient of exactly 0 before it"
        below = f"the loss asks for outputs below 0 at {each.below:.0%} of all places"
        yield Fault(summary, measured=blocked if each.blocked >= ENOUGH else below, where=where)


@rule(
    "initial-loss",
    "note",
    "model.init data.target_encoding data.normalisation",
    holds="a first loss of at most ten times that of all-zero outputs, or of the best constants",
    do="start the last layer smaller, or bring the targets to the size of the outputs, unless a few steps do it",
    is_statistical=True,
)
def network_begins_high(levels: Levels) -> Fault | None:
    """Compare the first loss of a network with that of outputs that need none."""
    return compare_start(levels)
