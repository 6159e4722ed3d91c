"""Hooks that loggers and plugins leave on a model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sightline.engine.distributed import World
from sightline.workbench.check.checks.model.leftover_hooks import find_foreign_hooks, hooks_of_loggers, leftover_hooks
from sightline.workbench.check.context import Context
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_complete, assert_healthy, caught, make


class Watcher:
    """A logger in the manner of `watch`: it hears every module and every gradient."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def watch(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            module.register_forward_hook(functools.partial(self.hear, name))
        for parameter in model.parameters():
            parameter.register_hook(self.hear_gradient)

    def hear(self, name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.heard.append(name)

    def hear_gradient(self, gradient: torch.Tensor) -> None:
        self.heard.append("gradient")


def enlarge(module: nn.Module, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
    """A hook that answers: the layer's output is another."""
    return outputs * 1.001 if isinstance(outputs, torch.Tensor) else outputs


def test_healthy_runs(tmp_path: Path) -> None:
    assert_healthy(make_pairs(tmp_path))
    assert find_foreign_hooks(make(tmp_path).job.model) == []


def test_hooks_of_torch_itself_belong_to_the_layer() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    prune.identity(model[1], "weight")
    assert find_foreign_hooks(model) == []


def test_a_logger_that_watches(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    Watcher().watch(built.job.model)
    (finding,) = leftover_hooks(Context(built, World()))
    assert (finding.severity, finding.cause) == ("warning", "dist.hook")
    assert "forward hook tests.doctor.checks.model.test_leftover_hooks.Watcher.hear on 'the model'" in finding.measured
    assert finding.where.file == __file__
    assert finding.evidence["changed"] == []
    assert "tests.doctor.checks.model.test_leftover_hooks.Watcher.hear_gradient" in finding.evidence["hooks"]
    assert_complete(finding)


def test_a_hook_that_changes_what_flows(tmp_path: Path) -> None:
    built = make(tmp_path)
    handle = built.job.model.get_submodule("head.2").register_forward_hook(enlarge)
    finding = caught(built, "leftover-hooks", "dist.hook")
    assert "'logits' differs with it" in finding.summary
    assert finding.where.layer == "head.2"
    assert finding.where.line == enlarge.__code__.co_firstlineno
    handle.remove()
    assert leftover_hooks(Context(built, World())) == []


def test_a_hook_on_every_module_there_is(tmp_path: Path) -> None:
    """Registered with torch itself, it stands in no module of the model."""
    built = make(tmp_path)
    handle = torch.nn.modules.module.register_module_forward_hook(enlarge)
    try:
        finding = caught(built, "leftover-hooks", "dist.hook")
        assert f"forward hook {__name__}.enlarge on every module" in finding.measured
        assert "'logits' differs with it" in finding.summary
        assert enlarge in torch.nn.modules.module._global_forward_hooks.values(), "put back after the comparison"
    finally:
        handle.remove()
    assert leftover_hooks(Context(built, World())) == []


def unordered(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """A hook that changes the state dict while it is read: the notes' `OrderedDict mutated during iteration`."""
    state.pop(next(iter(state)), None)


@pytest.mark.parametrize("register", ["register_state_dict_post_hook", "register_load_state_dict_pre_hook"])
def test_hooks_on_what_is_saved_and_loaded(tmp_path: Path, register: str) -> None:
    built = make(tmp_path)
    layer = built.job.model.get_submodule("head.2")
    handle = getattr(layer, register)(unordered)
    (finding,) = leftover_hooks(Context(built, World()))
    assert "tests.doctor.checks.model.test_leftover_hooks.unordered on 'head.2'" in finding.measured
    handle.remove()


class Renaming(nn.Linear):
    """Takes old names of its tensors and hears its own passes: hooks that are the layer's own."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_load_state_dict_pre_hook(self.rename)
        self.register_load_state_dict_post_hook(told_nothing)
        self.register_forward_hook(self.hear)

    def rename(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(f"{prefix}old_")]:
            state[name.replace("old_", "")] = state.pop(name)

    def hear(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.heard = True


def told_nothing(module: nn.Module, keys: Any) -> None:
    """A function beside the class of the layer that it hangs on."""


class Keeping(nn.Module):
    """Listens to a layer of its own, as models that hand out what is inside do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.layer.register_forward_hook(functools.partial(self.keep, "layer"))

    def keep(self, name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.kept = (name, outputs)


def test_hooks_that_a_model_hangs_on_itself_are_its_own() -> None:
    model = nn.Sequential(Renaming(), Keeping())
    assert find_foreign_hooks(model) == []
    model[1].register_load_state_dict_post_hook(told_nothing)  # of this file, as is Keeping
    assert find_foreign_hooks(model) == []
    model[1].layer.register_load_state_dict_post_hook(told_nothing)  # torch's class, and no method of the model
    assert [hook.layer for hook in find_foreign_hooks(model)] == ["1.layer"]


def test_the_check_leaves_the_hooks_alone(tmp_path: Path) -> None:
    built, watcher = make_pairs(tmp_path), Watcher()
    watcher.watch(built.job.model)
    before = [len(module._forward_hooks) for module in built.job.model.modules()]
    leftover_hooks(Context(built, World()))
    assert [len(module._forward_hooks) for module in built.job.model.modules()] == before


def test_hooks_that_a_training_left(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    context = Context(built, World(), run=tmp_path)
    assert hooks_of_loggers(context) == []
    Watcher().watch(built.job.model)
    (finding,) = hooks_of_loggers(context)
    assert (finding.code, finding.severity) == ("hooks-of-loggers", "warning")
