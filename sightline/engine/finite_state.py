"""Numbers of a training that have to stay finite: weights, buffers, their averages, slots of the optimiser."""

from __future__ import annotations

from torch import Tensor

from sightline.contract.errors import RunError
from sightline.engine.train import TrainState
from sightline.runs.optimizer_state import optimizer_tensors
from sightline.runs.weights import describe_non_finite, find_non_finite, plain_name


class NonFiniteStateError(RunError):
    """Error for a tensor of a training that is no longer finite: of the step `sound_step` it was, and nothing is saved.

    Loss and gradients need not show it: a huge number's square overflows in a running variance, which training does not
    read.
    """

    def __init__(self, job: TrainState, name: str, tensor: Tensor, sound_step: int) -> None:
        self.job = job
        self.name = name
        self.measured = describe_non_finite(tensor)
        self.sound_step = sound_step
        super().__init__(f"step {job.step}: {name}: {self.measured}; after step {sound_step} all were")


class FiniteState:
    """Tensors of a training that were finite when it was built, and have to stay so; slots of the optimiser always.

    Others may hold any number: a mask of -inf, a running minimum that begins at inf, a buffer of a first call.
    """

    def __init__(self, job: TrainState) -> None:
        self._job = job
        tensors = _named_tensors(job)
        spoiled = find_non_finite(tensors)
        self._shapes = {name: tensor.shape for name, tensor in tensors.items() if name not in spoiled}
        self.sound_step = job.step

    def assert_finite(self) -> None:
        """Raise NonFiniteStateError if one of them is not finite now; one wait for the device, and one look a step."""
        job = self._job
        if self.sound_step == job.step:
            return
        slots = optimizer_tensors(job.trained_module, job.optimizer)
        tensors = {name: t for name, t in _named_tensors(job).items() if self._shapes.get(name) == t.shape}
        tensors |= {f"the optimiser's slot '{name}'": tensor for name, tensor in slots.items()}
        for name in find_non_finite(tensors):
            raise NonFiniteStateError(job, name, tensors[name], self.sound_step)
        self.sound_step = job.step


def _named_tensors(job: TrainState) -> dict[str, Tensor]:
    """Return parameters and buffers of model, losses and their averages, by what an error calls them."""
    owners = {"model": job.model, "losses": job.losses, "EMA": job.ema, "losses' EMA": job.losses_ema}
    return {
        f"the {kind} '{plain_name(name)}' of the {owner}": tensor
        for owner, module in owners.items()
        if module is not None
        for kind, named in (("buffer", module.named_buffers()), ("parameter", module.named_parameters()))
        for name, tensor in named
        if tensor.numel()
    }
