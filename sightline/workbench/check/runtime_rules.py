"""Codes of the runtime moment: what `sightline.watch` and a training run judge while a loop trains."""

from __future__ import annotations

from sightline.workbench.check.checks.model.gradients import no_gradient
from sightline.workbench.check.checks.optimiser.non_finite import non_finite
from sightline.workbench.check.context import FindingBuilder

KEPT = FindingBuilder(
    guard="G15",
    code="gradients-kept",
    causes=("optim.grad_accumulation",),
    expected="gradients of this step alone: nothing cleared those that the previous update used",
    action="call optimizer.zero_grad() once per update, before backward()",
)
CLEARED = FindingBuilder(
    guard="G15",
    code="gradients-cleared",
    causes=("optim.step_order",),
    expected="the gradients of backward() are still there when the optimiser uses them",
    action="call zero_grad() before backward() or after step(), not between them",
)
NO_BACKWARD = FindingBuilder(
    guard="G15",
    code="step-without-backward",
    severity="warning",
    causes=("optim.step_order", "loss.detached"),
    expected="a backward pass before each update",
    action="call loss.backward() before optimizer.step(), and step() once per backward pass",
)
ZERO = FindingBuilder(
    guard="G10",
    code="zero-gradients",
    causes=("loss.form", "model.activation", "model.constant_output"),
    expected="gradients that are not all exactly zero",
    action="look for a saturated activation, a clamp or a mask that multiplies the loss by zero",
)
UNREGISTERED = FindingBuilder(guard="G10", code="unregistered", causes=("model.unregistered",))
COVERAGE = FindingBuilder(
    guard="G10",
    code="not-optimised",
    causes=("optim.param_coverage", "model.frozen_unintended"),
    expected="each trainable parameter in a group of an optimiser",
    action="make the optimiser last, from the model that is trained; freeze on purpose with requires_grad_(False)",
)
FROZEN = FindingBuilder(
    guard="G10",
    code="frozen",
    severity="warning",
    causes=("model.frozen_unintended",),
    expected="modules that train or are frozen as a whole",
    action="let them train, or freeze the whole module by requires_grad_(False)",
)
DEAD = FindingBuilder(
    guard="G10",
    code="dead-units",
    severity="warning",
    causes=("model.activation", "model.init", "optim.lr"),
    expected="units that some sample gives a gradient",
    action="look at the activation after it and at its bias; lower the learning rate",
)
NO_UPDATE = FindingBuilder(
    guard="G15",
    code="no-update",
    causes=("optim.lr", "optim.scheduler", "optim.state"),
    expected="updates that change the parameters",
    action="look at the learning rate of each group, at the schedule, and at the format of the weights",
)
LARGE_UPDATE = FindingBuilder(
    guard="G15",
    code="large-update",
    severity="warning",
    causes=("optim.lr", "optim.hyper", "model.init"),
    expected="updates that are small against the weights",
    action="lower the learning rate, warm up, or bound the gradient (clip_grad_norm_)",
)
SKIPPED = FindingBuilder(
    guard="G17",
    code="skipped-updates",
    causes=("optim.amp", "optim.nonfinite", "optim.step_order"),
    expected="an update for each cleared gradient, but for a few at the start, until the scaler has its scale",
    action="call optimizer.step(); under a GradScaler, look for inf or NaN without it, or train in bfloat16",
)
MODE = FindingBuilder(
    guard="G24",
    code="mode",
    severity="warning",
    causes=("eval.mode", "model.norm_mode"),
    expected="train() while training and eval() while evaluating",
    action="call model.train() at the start of each epoch, and model.eval() before evaluating",
)
CONSTANT = FindingBuilder(
    guard="G18",
    code="constant-output",
    causes=("model.constant_output", "model.activation", "data.item_mutation"),
    expected="outputs that depend on the sample",
    action="look for a factor of zero, a dead activation, or an input that the model does not use",
)
SAME_BATCH = FindingBuilder(
    guard="G5",
    code="same-batch",
    severity="warning",
    causes=("data.ordering", "data.sampling", "data.duplicate_randomness"),
    expected="another batch at each update",
    action="look at the loader and at its iterator; declare it with watch(..., declared=('same-batch',)) if intended",
)
SAME_ORDER = FindingBuilder(
    guard="G1",
    code="same-order",
    severity="warning",
    causes=("data.ordering", "dist.sampler", "data.sampling"),
    expected="another order in each epoch",
    action="shuffle; call sampler.set_epoch(epoch) at the start of each epoch, and make no generator anew with one "
    "seed; declare it with watch(..., declared=('same-order',)) if intended",
)
SAME_LABEL = FindingBuilder(
    guard="G4",
    code="same-label",
    severity="warning",
    causes=("data.label_mapping", "data.ordering", "data.imbalance"),
    expected="labels of several classes",
    action="look at how labels are read, and shuffle the data",
)
DOUBLE = FindingBuilder(
    guard="G22",
    code="double-softmax",
    causes=("loss.double_softmax", "model.activation"),
    expected="logits: this loss has its own activation inside",
    action="give the loss the outputs of the last linear layer, without the activation",
)
LOSS_FORM = FindingBuilder(
    guard="G28",
    code="loss-form",
    causes=("loss.form",),
    expected="a loss that compares each output with its own target",
    action="look at the shapes and the operations of the loss",
)
ATTENTION = FindingBuilder(
    guard="G24",
    code="attention",
    causes=("model.structure", "data.padding"),
    expected="attention to the keys that exist, with weights that sum to 1",
    action="look at the axis of the softmax, and at the meaning of the mask",
)
RESHAPED = FindingBuilder(
    guard="G24",
    code="exchanged-axes",
    causes=("data.layout", "model.structure"),
    expected="transpose or permute, which move values with their axes",
    action="use transpose or permute in place of view or reshape",
)
OVERLAP = FindingBuilder(
    guard="G4",
    code="split-overlap",
    causes=("data.split", "data.label_leak"),
    expected="evaluated samples that no update has seen",
    action="split once, by one permutation, and keep both parts",
)
UNLOADED = FindingBuilder(
    guard="G11",
    code="nothing-loaded",
    causes=("ckpt.key_mismatch",),
    expected="weights under the names of the model",
    action="rename the keys, and load with strict=True",
)
CLIPPED = FindingBuilder(
    guard="G15",
    code="scaled-clipping",
    causes=("optim.clip", "optim.amp", "optim.step_order"),
    expected="gradients that are unscaled before anything depends on their size",
    action="call scaler.unscale_(optimizer) before clipping",
)
SCHEDULE = FindingBuilder(
    guard="G15",
    code="schedule",
    severity="warning",
    causes=("optim.scheduler",),
    expected="a schedule that lasts as long as the training",
    action="give the scheduler's lengths in the unit in which it is stepped: batches or epochs",
)
EMA = FindingBuilder(
    guard="G18",
    code="ema",
    causes=("optim.state", "model.frozen_unintended"),
    expected="an average that follows the model",
    action="update the average after each optimizer.step()",
)
STATE = FindingBuilder(
    guard="G15",
    code="lost-state",
    causes=("ckpt.incomplete_state", "optim.state"),
    expected="an optimiser that goes on with the state of the last update: momenta, squares, counts of steps",
    action="save optimizer.state_dict() with the weights, and load it before the first update",
)
ALIAS = FindingBuilder(
    guard="G12",
    code="aliased-weights",
    causes=("ckpt.alias",),
    expected="a copy of the weights that were kept: state_dict() returns the model's own tensors, which go on learning",
    action="keep copy.deepcopy(model.state_dict()), or save it to a file when it is best",
)
SAME_SAMPLES = FindingBuilder(
    guard="G1",
    code="same-samples",
    severity="warning",
    causes=("dist.sampler", "data.sampling", "data.duplicate_randomness"),
    expected="other samples on each process",
    action="give the loader a torch.utils.data.DistributedSampler; declare it with "
    "watch(..., declared=('same-samples',)) if several processes share one sample",
)
COLLECTIVES = FindingBuilder(
    guard="G9",
    code="collectives-differ",
    causes=("dist.collective_mismatch",),
    expected="the same collectives on all processes, in the same order",
    action="call it on every process, or on none: take it out of the branch that the rank decides",
)
FILE_RACE = FindingBuilder(
    guard="G12",
    code="file-race",
    causes=("ckpt.race",),
    expected="a file of one process, or one file for each",
    action="save on the first process alone, or put the rank into the file's name",
)

RUNTIME_RULES = (
    KEPT,
    CLEARED,
    NO_BACKWARD,
    no_gradient,
    ZERO,
    UNREGISTERED,
    COVERAGE,
    FROZEN,
    DEAD,
    non_finite,
    NO_UPDATE,
    LARGE_UPDATE,
    SKIPPED,
    MODE,
    CONSTANT,
    SAME_BATCH,
    SAME_ORDER,
    SAME_LABEL,
    DOUBLE,
    LOSS_FORM,
    ATTENTION,
    RESHAPED,
    OVERLAP,
    UNLOADED,
    CLIPPED,
    SCHEDULE,
    EMA,
    STATE,
    ALIAS,
    SAME_SAMPLES,
    COLLECTIVES,
    FILE_RACE,
)
