"""Tools of torch that read a program, inside of a watched loop: they give what they give without it."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import sightline
from sightline.doctor.watch.loop import Hook
from tests.unchanged.forms import Net
from tests.unchanged.modes import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about torch.jit, ONNX and quantisation
Tool = Callable[[nn.Module, Tensor, Any], Any]
TOOLS: dict[str, Tool] = {}


def tool(run: Tool) -> Tool:
    TOOLS[run.__name__] = run
    return run


# --- graphs -----------------------------------------------------------------------------------------------------------


@tool
def trace(model: nn.Module, rows: Tensor, _: Any) -> Any:
    return [
        torch.jit.trace(model, rows)(rows).detach(),
        torch.jit.trace_module(model, {"forward": rows})(rows).detach(),
    ]


@tool
def trace_of_a_part_and_around(model: nn.Module, rows: Tensor, _: Any) -> Any:
    around = nn.Sequential(OrderedDict(inner=model, last=nn.ReLU()))
    return [torch.jit.trace(around, rows)(rows).detach(), torch.jit.script(around)(rows).detach()]


@tool
def script(model: nn.Module, rows: Tensor, _: Any) -> Any:
    return [torch.jit.script(each)(rows).detach() for each in (model, copy.deepcopy(model), copy.copy(model))]


@tool
def frozen_script(model: nn.Module, rows: Tensor, _: Any) -> Any:
    fast = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.script(copy.deepcopy(model).eval())))
    return fast(rows).detach()


@tool
def onnx_by_traces(model: nn.Module, rows: Tensor, _: Any) -> Any:
    pytest.importorskip("onnx")
    file = io.BytesIO()
    torch.onnx.export(model, (rows,), file, dynamo=False)
    return file.getvalue()


@tool
def exported(model: nn.Module, rows: Tensor, _: Any) -> Any:
    return [len(torch.export.export(model, (rows,), strict=strict).graph.nodes) for strict in (True, False)]


@tool
def symbolic_and_proxies(model: nn.Module, rows: Tensor, _: Any) -> Any:
    return [torch.fx.symbolic_trace(model)(rows).detach(), make_fx(model.eval())(rows)(rows).detach()]


@tool
def fake_and_meta_tensors(model: nn.Module, rows: Tensor, _: Any) -> Any:
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shapes = [tuple(model(mode.from_tensor(rows)).shape)]
    empty = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    return [*shapes, tuple(functional_call(model, empty, rows.to("meta")).shape)]


@tool
def compiled_step(model: nn.Module, rows: Tensor, optimizer: Any) -> Any:
    torch.compile(model, backend="eager")(rows).sum().backward()
    torch.compile(optimizer.step, backend="eager")()


# --- transforms and copies --------------------------------------------------------------------------------------------


@tool
def transforms(model: nn.Module, rows: Tensor, _: Any) -> Any:
    model.eval()
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    call = lambda weights, row: functional_call(model, (weights, buffers), (row[None],)).sum()  # noqa: E731
    result = [vmap(grad(call), (None, 0))(weights, rows), jacrev(call)(weights, rows[0])]
    result += [hessian(lambda row: call(weights, row))(rows[0]), jvp(model, (rows,), (rows,))]
    with forward_ad.dual_level():
        result.append(forward_ad.unpack_dual(model(forward_ad.make_dual(rows, rows))).tangent.detach())
    return result


@tool
def copies(model: nn.Module, rows: Tensor, optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save([model, optimizer], file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)[0]
    others = [loaded, copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))]
    hooks = [value for each in others for name, value in vars(each).items() if "hooks" in name and value]
    return [hooks, b"sightline" in file.getvalue(), *(each(rows).detach() for each in others)]


@tool
def replicas(model: nn.Module, rows: Tensor, _: Any) -> Any:
    nn.DataParallel(model)(rows)
    return [each.training for each in nn.parallel.replicate(model, [])] + [model.share_memory()(rows).detach()]


@tool
def checkpoints(model: nn.Module, rows: Tensor, _: Any) -> Any:
    for is_reentrant in (True, False):
        checkpoint(model, rows.requires_grad_(), use_reentrant=is_reentrant).sum().backward()
    with torch.autograd.graph.save_on_cpu():
        model(rows).sum().backward()
    return rows.grad


@tool
def quantised(model: nn.Module, rows: Tensor, _: Any) -> Any:
    from torch.ao import quantization

    copied = quantization.QuantWrapper(copy.deepcopy(model).eval())
    copied.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(copied)
    prepared(rows)
    quantization.convert(prepared)
    return quantization.quantize_dynamic(model.eval(), {nn.Linear})(rows)


@tool
def exchanged_module_with_its_hooks(model: nn.Module, rows: Tensor, _: Any) -> Any:
    """As a quantisation in place does: hooks of passes go to another module, without what they are called with."""
    other = nn.ReLU()
    for hook in model._forward_hooks.values():
        other.register_forward_hook(hook)
    for hook in model._forward_pre_hooks.values():
        other.register_forward_pre_hook(hook)
    return other(rows)


@tool
def fused(model: nn.Module, rows: Tensor, _: Any) -> Any:
    return fuse_linear_bn_eval(model.body[0].eval(), model.body[1].eval())(rows).detach()


# --- modes ------------------------------------------------------------------------------------------------------------


@tool
def operations_are_counted(model: nn.Module, rows: Tensor, optimizer: Any) -> Any:
    seen: list[str] = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Operators():
        F.cross_entropy(model(rows), rows[:, :3].argmax(1)).backward()
        optimizer.step()
    return seen


@tool
def a_device_for_all(model: nn.Module, rows: Tensor, optimizer: Any) -> Any:
    class Functions(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    with torch.device("cpu"), Functions():
        model(rows).sum().backward()
        optimizer.step()


@tool
def passes_without_gradients(model: nn.Module, rows: Tensor, _: Any) -> Any:
    with torch.inference_mode():
        return [model.eval()(rows).clone(), model.train()(rows).clone()]


@tool
def hooks_are_cleared(model: nn.Module, rows: Tensor, _: Any) -> Any:
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model(rows).detach()


def train(use: Tool, *, is_watched: bool) -> tuple[str, Any]:
    """Train a little and use a tool early and late; return the digest of all that is left, and the watch."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    left: list[Any] = [model, optimizer]
    with sightline.watch(model, optimizer=optimizer) if is_watched else contextlib.nullcontext() as watch:
        for number in range(8):
            rows = torch.randn(8, 6)
            optimizer.zero_grad()
            F.cross_entropy(model(rows), rows[:, :3].argmax(1)).backward()
            optimizer.step()
            if number in (1, 6):
                left.append(use(model, rows.clone(), optimizer))
                optimizer.zero_grad()
                model.train()
    return digest([*left, torch.get_rng_state()]), watch


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_gives_what_it_gives_in_a_plain_loop(name: str) -> None:
    plain, _ = train(TOOLS[name], is_watched=False)
    watched, watch = train(TOOLS[name], is_watched=True)
    assert watched == plain
    if name != "exchanged_module_with_its_hooks":
        compiled = "the first step: torch compiles parts of the program"  # by a test before, in this process
        assert {*watch._loop.failures} <= {compiled}


def test_what_was_made_inside_of_a_loop_is_scripted_after_it() -> None:
    model = Net()
    with sightline.watch(model):
        copied, saved = copy.deepcopy(model), pickle.dumps(model)
    for each in (model, copied, pickle.loads(saved)):
        torch.jit.script(each)


def test_hooks_of_the_user_are_copied_and_scripted() -> None:
    """Their order stays, too, and torch refuses those that it cannot script, as it does without a watch."""
    model, seen = Net(), list[int]()
    first = model.register_forward_hook(lambda *_: seen.append(1))
    with sightline.watch(model):
        model.register_forward_hook(lambda *_: seen.append(2))
        before = list(model._forward_hooks)
        copied = copy.deepcopy(model)
        with pytest.raises(Exception, match="top-level function"):
            torch.jit.script(model)
        assert list(model._forward_hooks) == before
    assert not any(isinstance(hook, Hook) for hook in copied._forward_hooks.values())
    copied(torch.randn(4, 6))
    assert seen == [1, 2]
    first.remove()
    model(torch.randn(4, 6))
    assert seen == [1, 2, 2]
