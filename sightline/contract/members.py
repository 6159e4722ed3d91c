"""Optional members of components, by kind: the only list of their names, which registration compares with."""

from __future__ import annotations

import difflib
import dis
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import CodeType, MappingProxyType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_MIN_SIMILARITY = 0.85
"""Minimal similarity of a misspelling: one wrong letter of seven, one too many or too few of three."""
_MAX_LENGTH_DIFFERENCE = 2
"""Maximal difference in length of a misspelling, and maximal number of letters in one of both alone."""
_ENDINGS = ("", "es", "d", "ed", "r", "er", "or", "n", "ion", "ing")


class Member(Generic[T]):
    """Optional member: its meaning, and its default in a component without it."""

    name: str

    def __init__(self, meaning: str, *, absent: T) -> None:
        self.meaning = meaning
        self.absent = absent

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def get(self, component: object) -> T:
        """Return the member of a component, or of a class; `absent` if it has none."""
        member: T = getattr(component, self.name, self.absent)
        return member


Function = Callable[..., Any] | None


class DataMembers:
    """Optional members of a data set."""

    get_batch: Member[Function] = Member("`get_batch(keys)`: a whole batch at once, of a set in memory", absent=None)
    collate: Member[Function] = Member("`collate(samples)`: the batch, with every key of `info.fields`", absent=None)
    sample_name: Member[Function] = Member("`sample_name(index)`: the name of a sample in reports", absent=None)
    strata: Member[Any] = Member("one class per sample (an array), for stratified splits", absent=None)
    repeats: Member[int] = Member(
        "how often an epoch visits every sample; all first visits come first, and one part holds all of a sample",
        absent=1,
    )
    fingerprint: Member[str | None] = Member(
        "text that changes whenever the same arguments and keys may give other samples; features are cached by it",
        absent=None,
    )
    content_sha256: Member[str | None] = Member(
        "SHA-256 of all that its files hold, wherever they are; runs and processes compare it, or `fingerprint`",
        absent=None,
    )
    copies: Member[Any] = Member(
        "digests of every sample, `Copies`: the same sample in two splits is reported", absent=None
    )
    doubts: Member[Sequence[str]] = Member(
        "what was found in its samples when they were prepared, and may spoil a training: `check` says it", absent=()
    )
    baselines: Member[Mapping[str, Mapping[str, float]]] = Member(
        "metric → {simple prediction: its figure}, shown next to the metrics of a run", absent=MappingProxyType({})
    )
    pictures: Member[Any] = Member("the rendered views that `image` comes from", absent=None)
    prepare: Member[Function] = Member(
        "`prepare(*, source, target, name, progress, ...)`, of the class: what `sightline data prepare` calls",
        absent=None,
    )
    label_map: Member[Any] = Member("of a set of scans: from the ids of label files to its classes", absent=None)
    card: Member[Function] = Member("`card()`, of the class: what `sightline data info` prints", absent=None)
    expected_info: Member[Function] = Member(
        "`expected_info(*, ...)`, of the class: the `info` of a set that is not prepared yet", absent=None
    )


def get_data_digest(dataset: object) -> str | None:
    """Return the text that identifies the contents of a data set; None for one that states none."""
    return DataMembers.content_sha256.get(dataset) or DataMembers.fingerprint.get(dataset)


class ModelMembers:
    """Optional members of a model, or of an encoder."""

    encode: Member[Function] = Member("`encode(*, ...)`: the features of each sample, for probes", absent=None)
    feature_width: Member[int | None] = Member("how many features `encode` returns", absent=None)
    fit_weights: Member[Function] = Member(
        "`fit_weights(weights, config)`: weights for `init` with a library's config beside them, fitted to this model, "
        "and a sentence on what was fitted",
        absent=None,
    )
    tasks: Member[Collection[str] | None] = Member(
        "of the class: names of the only tasks that it is for; by default all that take its outputs", absent=None
    )
    targets: Member[frozenset[str]] = Member(
        "optional arguments of `forward` that it computes losses of: an exported file has none of them",
        absent=frozenset(),
    )
    output_keys: Member[frozenset[str] | None] = Member(
        "the keys that `forward` returns, where they depend on a block that the model is made of", absent=None
    )


class HeadMembers:
    """Optional members of a head."""

    predictions_per_prior: Member[int] = Member("number of boxes that it predicts per prior, 1 or 2", absent=1)
    to_deltas: Member[Function] = Member(
        "`to_deltas(codes, priors)`: converts its raw `codes` to deltas of the priors", absent=None
    )
    assigners: Member[Collection[str] | None] = Member(
        "names of the only assigners that may give it targets; by default all that take its priors", absent=None
    )


class AssignerMembers:
    """Optional members of an assigner."""

    needs_predictions: Member[bool] = Member(
        "True if `match` also reads `labels` and the network's predictions, a `PriorPredictions`", absent=False
    )
    boxes_per_prior: Member[int] = Member("number of boxes that it assigns to each prior, 1 or 2", absent=1)
    excludes: Member[Collection[str]] = Member(
        "outputs that its targets do not train, such as `objectness`: heads that predict one do not fit", absent=()
    )


class TaskMembers:
    """Optional members of a task."""

    predicts: Member[frozenset[str]] = Member("the keys of its predictions, for metrics", absent=frozenset())
    context_keys: Member[frozenset[str]] = Member(
        "the keys that `prepare` computes once per batch, for losses and metrics", absent=frozenset()
    )
    vote: Member[Function] = Member("`vote(passes)`: several predictions of one batch as one", absent=None)
    prepare_outputs: Member[Function] = Member(
        "`prepare_outputs(model, batch, world)`: counts, contexts and outputs of a step of one batch whose context "
        "needs outputs, so that its losses need no further pass; None if it needs none",
        absent=None,
    )
    losses_of: Member[Function] = Member("`losses_of(batch, outputs, context)`: the losses of such a step", absent=None)
    get_priors: Member[Function] = Member(
        "`get_priors(image)`: the priors of a batch of images, of a task that assigns them to boxes", absent=None
    )
    compares_rows: Member[bool] = Member(
        "whether each sample is compared with all others of the step, as in contrastive learning", absent=False
    )
    show: Member[Function] = Member(
        "`show(batch, predictions)`: pictures for TensorBoard; `view` gives `pixels` (H, W, 3) uint8 of its one image, "
        "and the least `score` to draw, where it takes them",
        absent=None,
    )
    hardness: Member[Function] = Member(
        "`hardness(batch, predictions)`: (B,), larger for worse predictions; evaluations then draw their worst samples",
        absent=None,
    )
    show_targets: Member[Function] = Member(
        "`show_targets(batch)`: for `view`: stage → pictures and figures of the context of `prepare`; it gets `pixels` "
        "as `show` does",
        absent=None,
    )
    on_phase_end: Member[Function] = Member(
        "`on_phase_end(part)`: called after `forward` and `loss`, set by the timer of a step", absent=None
    )
    evaluation_arguments: Member[frozenset[str]] = Member(
        "constructor arguments that change evaluation alone, so that `evaluate RUN task.NAME=` may", absent=frozenset()
    )
    make_decoding: Member[Function] = Member(
        "`make_decoding(example)`: a function `(outputs, batch)` → name → tensor of what an exported file predicts "
        "beside the outputs; `example` is a batch, for all that is the same in every batch",
        absent=None,
    )
    greedy_threshold: Member[float | None] = Member(
        "the IoU of a greedy suppression of each class by itself, which an exported file then contains", absent=None
    )
    left_to_caller: Member[tuple[str, ...]] = Member(
        "what whoever runs an exported file has to do with its outputs, a sentence each", absent=()
    )
    step_metrics: Member[Function] = Member(
        "`step_metrics(losses, num_samples, num_processes)`: further numbers of a training step", absent=None
    )
    step_counts: Member[Function] = Member(
        "`step_counts(contexts)`: name → count (0-d tensor) over the contexts of `prepare`, logged with each step",
        absent=None,
    )


class MetricMembers:
    """Optional members of a metric."""

    higher_is_better: Member[bool | Mapping[str, bool] | None] = Member(
        "True, False, or figure → True or False; `evaluate.mode` is then not needed", absent=None
    )
    slots: Member[Any] = Member("names of states with a row per sample", absent=())
    rows: Member[Any] = Member(
        "names of states with any number of rows per sample (float64, the sample's index first)", absent=()
    )
    within_batch: Member[frozenset[str]] = Member(
        "names of figures that by definition depend on the batch size", absent=frozenset()
    )
    scores_absent_zero: Member[bool] = Member(
        "True where a class that neither labels nor predictions have counts 0 by the protocol", absent=False
    )
    per_class: Member[Function] = Member("`per_class(state)`: class → {figure: number}", absent=None)
    per_sample: Member[Function] = Member("`per_sample(state)`: a number for each sample", absent=None)
    sums: Member[Function] = Member(
        "`sums(state)`: figure → `SampleSums` that it is made of, for its interval (`sightline.contract.metric`)",
        absent=None,
    )
    class_intervals: Member[Function] = Member(
        "`class_intervals(state)`: figure of `per_class` → `SampleSums` with a column, or `SampleShares` or "
        "`LeftOutFigures` with a number, for each of its classes, for their intervals",
        absent=None,
    )
    update_labels: Member[Function] = Member(
        "`update_labels(state, *, labels, ...)`: as `update`, of predicted labels where only these are known",
        absent=None,
    )
    tables: Member[Function] = Member("`tables(state)`: name → plain values, kept in JSON", absent=None)
    worst_samples: Member[Function] = Member(
        "`worst_samples(state)`: `WorstSamples` (`sightline.contract.metric`), the samples with the most errors of "
        "each kind; evaluations with pictures and `view` draw them",
        absent=None,
    )
    pictures: Member[Function] = Member(
        "`pictures(state)`: `sightline.draw.pictures.Picture`s of the whole part, for TensorBoard and `predictions/`",
        absent=None,
    )


class TransformMembers:
    """Optional members of a transform."""

    adds: Member[Mapping[str, Any]] = Member("name → `Field` of each field that it adds", absent=MappingProxyType({}))
    facts: Member[Mapping[str, Any]] = Member(
        "facts that replace those of the data set, such as `in_channels`", absent=MappingProxyType({})
    )
    chooses_points: Member[bool] = Member("True if it drops or reorders points", absent=False)
    moves_pixels: Member[bool] = Member("True if it moves the content of an image", absent=False)
    makes_unit_sphere: Member[bool] = Member(
        "True if it normalises clouds to the unit sphere about their mean", absent=False
    )
    split_for_graph: Member[Function] = Member(
        "`split_for_graph()`: of one that an exported file can contain, the transform that is left outside, or None, "
        "and a function of the fields inside",
        absent=None,
    )
    until_epoch: Member[int | None] = Member(
        "the epoch from which one that takes `draw_samples` gets None for it, counted from 0", absent=None
    )


def _list_members(owner: type) -> Mapping[str, Member[Any]]:
    return {name: member for name, member in vars(owner).items() if isinstance(member, Member)}


MEMBERS: Mapping[str, Mapping[str, Member[Any]]] = {
    "assigners": _list_members(AssignerMembers),
    "data": _list_members(DataMembers),
    "models": _list_members(ModelMembers),
    "point_encoders": _list_members(ModelMembers),
    "image_encoders": _list_members(ModelMembers),
    "heads": _list_members(HeadMembers),
    "tasks": _list_members(TaskMembers),
    "metrics": _list_members(MetricMembers),
    "transforms": _list_members(TransformMembers),
}
"""The optional members of components, by kind."""

REQUIRED: Mapping[str, frozenset[str]] = {
    "assigners": frozenset({"prior_kinds", "match"}),
    "data": frozenset({"info"}),
    "models": frozenset({"forward"}),
    "backbones": frozenset({"forward"}),
    "necks": frozenset({"forward"}),
    "heads": frozenset({"forward", "priors", "priors_per_cell"}),
    "references": frozenset({"title"}),
    "tasks": frozenset({"prepare", "losses", "predict", "losses_and_predictions", "outputs", "postprocess"}),
    "losses": frozenset({"count", "forward"}),
    "metrics": frozenset({"new_state", "update", "compute"}),
    "probes": frozenset({"most_rows"}),
    "searches": frozenset({"max_num_evaluations", "fills_budget", "max_evaluations", "run"}),
    "suppressions": frozenset({"keep"}),
}
"""The members that the package calls on every component of a kind, or on all that derive from its base class."""


def suggest_member(kind: str, name: str) -> str | None:
    """Return the member of a kind that `name` misspells; None for a known name, or a user's own.

    A known name with another ending, or with a further word, is no misspelling (`encoder` and `encode_all` next to
    `encode`); neither is a private name.
    """
    member_names = {*REQUIRED.get(kind, ()), *MEMBERS.get(kind, ())}
    if name in member_names or name.startswith("_"):
        return None
    similarity = {member: _similarity(_normalise(name), _normalise(member)) for member in member_names}
    candidates = [
        member for member in member_names if similarity[member] >= _MIN_SIMILARITY and not _is_derived(name, member)
    ]
    return max(candidates, key=lambda member: similarity[member], default=None)


def _normalise(name: str) -> str:
    """Normalise a name: `per_class`, `perClass` and `perclass` become equal."""
    return name.replace("_", "").casefold()


def _similarity(one: str, other: str) -> float:
    """Compute a similarity from 0 to 1; two swapped letters are one slip, which `difflib` counts as two."""
    if abs(len(one) - len(other)) > _MAX_LENGTH_DIFFERENCE or len({*one} ^ {*other}) > _MAX_LENGTH_DIFFERENCE:
        return 0.0  # early: registering every component compares some ten thousand pairs
    differences = [index for index, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its]
    if (
        len(one) == len(other)
        and len(differences) == 2
        and differences[1] == differences[0] + 1
        and sorted(one) == sorted(other)
    ):
        return 1 - 1 / len(one) / 2
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _is_derived(name: str, member: str) -> bool:
    """Return True if a name is a member's with a further word or another ending; a doubled last letter is neither."""
    if name.startswith(f"{member}_") and name != f"{member}_":
        return True
    stems = {member} if member.endswith("ss") else {member, member.removesuffix("s"), member.removesuffix("es")}
    forms = {stem + ending + plural for stem in stems for ending in _ENDINGS for plural in ("", "s")}
    return name in forms - {member + member[-1]}


def find_misspelt_members(kind: str, builder: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Find misspelt members of a class and of its bases in the same package or plugin, each with the known name.

    Members are what a class body defines and what methods set, as by `self.strata = ...`. A function has none.
    """
    if not isinstance(builder, type):
        return
    package = builder.__module__.partition(".")[0]
    classes = [part for part in builder.__mro__ if part.__module__.partition(".")[0] == package]
    codes = [code for part in classes for value in vars(part).values() for code in _list_codes(value)]
    defined = {name for part in classes for name in (*vars(part), *inspect.get_annotations(part))}
    for name in sorted(defined.union(*(code.co_names for code in codes))):
        suggestion = suggest_member(kind, name)
        if suggestion is not None and (
            name in defined or any(name in _list_assigned_attributes(code) for code in codes)
        ):
            yield name, suggestion


def _list_codes(value: Any) -> Iterator[CodeType]:
    """Iterate over the code of a function, a class method, a static method, or a property."""
    functions = (value, getattr(value, "__func__", None), *(getattr(value, name, None) for name in ("fget", "fset")))
    yield from (function.__code__ for function in functions if isinstance(function, types.FunctionType))


def _list_assigned_attributes(code: CodeType) -> set[str]:
    """Return the attributes that code assigns to."""
    return {str(instruction.argval) for instruction in dis.get_instructions(code) if instruction.opname == "STORE_ATTR"}
