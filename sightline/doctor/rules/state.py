"""Rules of state: what a checkpoint must hold to go on."""

from __future__ import annotations

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.state import Restored, Resumed
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_ROUNDING, _MIN_SHARE = 1e-5, 1e-2


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
        raise NotApplicableError("steps do not repeat to the bit")
    if resumed.change <= _MIN_SHARE * resumed.moved:
        return None
    return Fault(
        "the state dict of the optimizer lacks what its next step depends on",
        measured=f"the third step moves '{resumed.name}' by {resumed.moved:.3g}, and after its state was saved and "
        f"loaded it ends {resumed.change:.3g} beside; repeated steps differ by 0",
        where=FindingLocation(param=resumed.name),
    )
