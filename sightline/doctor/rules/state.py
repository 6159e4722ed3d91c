"""Rules of state: what a checkpoint must hold to go on, what a loop loads, keeps and averages."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.doctor.attempts import LeftOutError
from sightline.doctor.evidence.state import Restored, Resumed
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_ROUNDING, _MIN_SHARE = 1e-5, 1e-2
_AVERAGES = ("ema", "teacher", "momentum", "mean", "avg", "average", "slow", "key")
"""Parts of the names of averages; others, such as a target network, are copied now and then."""
FEW_ZEROS = 0.05
"""Share of zeros of a weight that is not pruned."""


@rule(
    "unsaved-state",
    "error",
    "ckpt.incomplete_state ckpt.key_mismatch",
    holds="a copy of the model that loads its state dict gives its outputs",
    do="keep tensors that passes change by register_buffer, persistent, and everything learnt as nn.Parameter",
)
def unsaved_state(restored: Restored) -> Fault | None:
    """Compare outputs in evaluation mode with those of a copy that has loaded the state dict."""
    if restored.refusal:
        return Fault("the model does not load its own state dict", measured=restored.refusal)
    if restored.change <= _ROUNDING * restored.largest:
        return None
    return Fault(
        "the state dict lacks what a pass in training mode changes, and outputs depend on",
        measured=f"after two passes outputs{f' {restored.path}' if restored.path else ''} of up to "
        f"{restored.largest:.4g} differ by {restored.change:.3g} from those of a copy that has loaded the state dict",
    )


@rule(
    "unsaved-optimiser",
    "warning",
    "optim.state ckpt.incomplete_state",
    holds="an optimizer that loads its state dict goes on as if it had not been stopped",
    do="keep counts and averages in self.state[parameter], or in the groups: state_dict() saves these",
)
def unsaved_optimiser(resumed: Resumed) -> Fault | None:
    """Compare the third of three steps with that of copies that have loaded both state dicts after the second."""
    if resumed.repeated > 0:
        raise LeftOutError("steps do not repeat to the bit")
    if resumed.change <= _MIN_SHARE * resumed.moved:
        return None
    return Fault(
        "the state dict of the optimizer lacks what its next step depends on",
        measured=f"the third step moves '{resumed.name}' by {resumed.moved:.3g}, and after its state was saved and "
        f"loaded it ends {resumed.change:.3g} beside; repeated steps differ by 0",
        where=FindingLocation(param=resumed.name),
    )


@rule(
    "lost-state",
    "error",
    "ckpt.incomplete_state optim.state",
    holds="an optimiser that goes on with the state of the last update: momenta, squares, counts of steps",
    do="save optimizer.state_dict() with the weights, and load it before the first update",
)
def lost_state(optimizer: str, num_before: int, num_resumed: int, update: int) -> Fault:
    """Report parameters that had a state after the last update, or have one after the first of a resume without any."""
    if num_before:
        return Fault(
            f"{optimizer} has lost its state: momenta begin at zero again",
            measured=f"no state; that of {num_before} parameters after the last update",
        )
    return Fault(
        f"{optimizer} goes on without its state: momenta begin at zero again",
        measured=f"no state at update {update}, the first after the resume; {num_resumed} parameters have one",
    )


@rule(
    "nothing-loaded",
    "error",
    "ckpt.key_mismatch",
    holds="weights under the names of the model",
    do="rename the keys, and load with strict=True",
)
def nothing_loaded(loaded: Sequence[str], own: Sequence[str]) -> Fault | None:
    """Look for a state without any name of the model's."""
    if not own or not loaded or {*own} & {*loaded}:
        return None
    return Fault(
        "load_state_dict finds none of the model's weights: with strict=False it loads nothing",
        measured=f"0 of {len(loaded)} names fit the model's {len(own)}: '{loaded[0]}' for '{own[0]}'",
    )


@rule(
    "aliased-weights",
    "error",
    "ckpt.alias",
    holds="a copy of the weights that were kept: state_dict() returns the model's own tensors, which go on learning",
    do="keep copy.deepcopy(model.state_dict()), or save it to a file when it is best",
)
def aliased_weights(aliased: Sequence[str], own: Sequence[str], num_updates: int, is_edited: bool) -> Fault | None:
    """Look for a state that shares its memory with all parameters of a model that has learnt, and edits none."""
    if not own or len(aliased) < len(own) or not num_updates or is_edited:
        return None
    return Fault(
        "load_state_dict gets the model's own tensors: nothing is restored",
        measured=f"{len(aliased)} of {len(own)} parameters share their memory with the model, after {num_updates} "
        "updates",
        where=FindingLocation(param=aliased[0]),
    )


@rule(
    "ema",
    "error",
    "optim.state model.frozen_unintended",
    holds="an average that follows the model, with running statistics that fit its weights",
    do="update the average after each optimizer.step(), and copy the buffers, or recompute them (update_bn)",
)
def stale_average(average: str, stale_statistics: Sequence[str], num_updates: int) -> Fault:
    """Report an average that is evaluated with the statistics of its start, or that never moves.

    A frozen copy that the model has, by the name of `average`, may be meant to stay.
    """
    if stale_statistics:
        return Fault(
            f"the average is evaluated with the running statistics of its start: '{stale_statistics[0]}'",
            measured=f"{len(stale_statistics)} buffers have moved in the model, none of them in its average",
            causes=("model.norm_mode", "optim.state"),
        )
    copied = f"'{average}', a frozen copy of layers that were not trained,"
    is_named = any(word in average.lower() for word in _AVERAGES)
    return Fault(
        f"{copied if average else 'the moving average of the weights'} never moves",
        measured=f"no parameter of it has changed in {num_updates} updates",
        severity=("warning" if is_named else "note") if average else None,
        where=FindingLocation(layer=average or None),
    )


@rule(
    "regrown-weights",
    "warning",
    "quant.no_effect optim.step_order",
    holds="weights that stay zero once they are pruned",
    do="apply the masks again after each optimizer.step(), or prune by torch.nn.utils.prune",
)
def regrown_weights(optimizer: str, shares_of_zeros: Sequence[float], update: int) -> Fault | None:
    """Compare the zeros of a weight before the update that regrew them, before the next one, and at the end."""
    pruned, regrown, last = shares_of_zeros
    if max(regrown, last) >= FEW_ZEROS:
        return None
    return Fault(
        f"weights that were set to zero are changed by the next update of {optimizer}",
        measured=f"{pruned:.0%} of a weight matrix were zero before an update, {regrown:.0%} before the next",
        where=FindingLocation(step=update),
    )


@rule(
    "file-race",
    "error",
    "ckpt.race",
    holds="a file of one process, or one file for each",
    do="save on the first process alone, or put the rank into the file's name",
)
def file_race(ranks: tuple[int, int], saved: Sequence[tuple[str, int, int]]) -> Fault | None:
    """Look for files that two processes of a machine save, each after so many updates."""
    if not saved:
        return None
    path, first, second = saved[0]
    more = f"; so are {len(saved) - 1} more" if len(saved) > 1 else ""
    return Fault(
        f"ranks {ranks[0]} and {ranks[1]} both save {path}: they may write at once, and the later one wins",
        measured=f"torch.save to it after {first} updates on rank {ranks[0]}, after {second} on rank {ranks[1]}{more}",
        where=FindingLocation(step=max(first, second) or None),
    )
