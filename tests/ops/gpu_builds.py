"""GPU kernels on a machine without a GPU: their launches, recorded, and their machine code."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sightline.ops.gpu_kernels import GpuKernel

_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}

_NUMBERS = {"tl.int32": "i32", "tl.int64": "i64", "tl.float64": "fp64"}


class Launch(NamedTuple):
    """A kernel, its arguments by name and the options of its compilation."""

    kernel: GpuKernel
    num_programs: int
    arguments: dict[str, Any]
    options: dict[str, Any]


class Build(NamedTuple):
    """What a kernel takes of a multiprocessor, and its intermediate code."""

    registers: int
    stack: int
    shared: int
    ptx: str


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Context in which kernels are recorded instead of launched; tensors may lie on any device."""
    launches: list[Launch] = []

    def record(kernel: GpuKernel, num_programs: int, *arguments: Any, **constants: Any) -> None:
        if not num_programs:
            return
        assert num_programs < 2**31, "a GPU numbers programs along one axis by 31 bits"
        names = kernel.function.__code__.co_varnames[: kernel.function.__code__.co_argcount]
        given = dict(zip(names, arguments, strict=False)) | {k: v for k, v in constants.items() if k in names}
        options = {name: value for name, value in constants.items() if name not in names}
        launches.append(Launch(kernel, num_programs, given, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GpuKernel, "launch", record)
        yield launches


def build(launch: Launch, capability: int) -> Build:
    """Compile a launch for a GPU of a compute capability (80, 86, 89, 90, 100) and read its needs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    annotations = launch.kernel.function.__annotations__
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, (name, value) in enumerate(launch.arguments.items()):
        if "constexpr" in str(annotations.get(name, "")) or value is None:
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name], attributes[(place,)] = "*" + _TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = _NUMBERS[annotations[name]]
    source = ASTSource(fn=launch.kernel.jitted, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": 4, **launch.options, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _dump_usage(compiled.asm["cubin"])
    numbers = {key: int(number) for key, number in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return Build(numbers["REG"], numbers["STACK"], compiled.metadata.shared, compiled.asm["ptx"])


def find_variant(launch: Launch) -> tuple[Any, ...]:
    """Return what Triton compiles a kernel anew for: types, constants, values and addresses that it tells apart."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    jitted = launch.kernel.jitted
    bind = create_function_from_signature(jitted.signature, jitted.params, make_backend(GPUTarget("cuda", 90, 32)))
    _, specialization, options = bind(**launch.arguments, **launch.options)
    return launch.kernel.function.__name__, *map(tuple, specialization), *sorted(options.items())


def _dump_usage(cubin: bytes) -> str:
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = Path(f"/tmp/sightline-{hash(cubin):x}.cubin")
    file.write_bytes(cubin)
    try:
        return subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    finally:
        file.unlink()
