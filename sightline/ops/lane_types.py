"""Lanes as a type of numba, and its operations in machine code: `lanes.py` says what they guarantee.

Imports numba: only a kernel that is about to be compiled imports this module. numba renews the machine code it keeps
of a kernel when the kernel's file changes, not when this one does: change both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from sightline.ops.numba_kernels import LANES


class LanesType(types.Type):
    """Eight floating-point numbers of one format."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    """LLVM's vector of eight numbers."""

    def __init__(self, manager: Any, lanes: LanesType) -> None:
        number = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(number, LANES))


def _point_at(context: Any, builder: Any, array_type: Any, array: Any, index_type: Any, index: Any) -> Any:
    """Return the address of eight numbers."""
    assert array_type.layout == "C", f"lanes lie side by side in memory, not in an array like {array_type}"
    indices = [
        context.cast(builder, entry, kind, types.intp)
        for entry, kind in zip(cgutils.unpack_tuple(builder, index), index_type, strict=True)
    ]
    struct = context.make_array(array_type)(context, builder, value=array)
    address = cgutils.get_item_pointer(context, builder, array_type, struct, indices, wraparound=False)
    return builder.bitcast(address, ir.VectorType(context.get_data_type(array_type.dtype), LANES).as_pointer())


def _align(context: Any, dtype: Any) -> int:
    size: int = context.get_abi_sizeof(context.get_data_type(dtype))
    return size


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Emit an unaligned read."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _point_at(context, builder, array, arguments[0], index, arguments[1])
        return builder.load(address, align=_align(context, array.dtype))

    return LanesType(array.dtype)(array, index), emit


@intrinsic
def store(typing_context: Any, values: Any, array: Any, index: Any) -> Any:
    """Emit an unaligned write."""
    assert values.dtype == array.dtype, f"lanes of {values.dtype} go into an array of {array.dtype}"

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _point_at(context, builder, array, arguments[1], index, arguments[2])
        builder.store(arguments[0], address, align=_align(context, array.dtype))
        return context.get_dummy_value()

    return types.void(values, array, index), emit


@intrinsic
def zeros_like(typing_context: Any, array: Any) -> Any:
    """Emit a constant."""
    lanes = LanesType(array.dtype)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(lanes), [0.0] * LANES)

    return lanes(array), emit


def _zeros(values: Any) -> Any:
    return ir.Constant(values.type, [0.0] * LANES)


@intrinsic
def rectify(typing_context: Any, values: Any) -> Any:
    """Emit a comparison and a choice."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (height,) = arguments
        return builder.select(builder.fcmp_ordered("<", height, _zeros(height)), _zeros(height), height)

    return values(values), emit


@intrinsic
def where_positive(typing_context: Any, values: Any, heights: Any) -> Any:
    """Emit a comparison and a choice."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, height = arguments
        return builder.select(builder.fcmp_ordered(">", height, _zeros(height)), value, _zeros(value))

    return values(values, heights), emit


@intrinsic
def add_lanes(typing_context: Any, total: Any, values: Any) -> Any:
    """Emit eight additions, one after the other."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result, lanes = arguments
        for lane in range(LANES):
            result = builder.fadd(result, builder.extract_element(lanes, ir.Constant(ir.IntType(32), lane)))
        return result

    return values.dtype(values.dtype, values), emit


@intrinsic
def widen(typing_context: Any, values: Any) -> Any:
    """Emit a conversion; none where lanes are float64 already."""
    wide = LanesType(types.float64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (lanes,) = arguments
        return lanes if values == wide else builder.fpext(lanes, context.get_value_type(wide))

    return wide(values), emit


@intrinsic
def _spread(typing_context: Any, number: Any, lanes: Any) -> Any:
    """Emit eight copies of a number in the format of lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, first = arguments[1].type, ir.Constant(ir.IntType(32), 0)
        start = builder.insert_element(ir.Constant(kind, ir.Undefined), arguments[0], first)
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(start, ir.Constant(kind, ir.Undefined), order)

    return lanes(lanes.dtype, lanes), emit


@intrinsic
def add_product(typing_context: Any, total: Any, number: Any, values: Any) -> Any:
    """Emit a fused multiply-add."""
    assert total == values, f"a product of {values} cannot be added to {total} in one rounding"
    assert number == values.dtype, f"found a factor of {number}, expected {values.dtype}"

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, factor, lanes = arguments
        first, order = ir.Constant(ir.IntType(32), 0), ir.VectorType(ir.IntType(32), LANES)
        start = builder.insert_element(ir.Constant(lanes.type, ir.Undefined), factor, first)
        spread = builder.shuffle_vector(start, ir.Constant(lanes.type, ir.Undefined), ir.Constant(order, [0] * LANES))
        kind = lanes.type
        name = f"llvm.fma.v{LANES}f{8 * context.get_abi_sizeof(kind.element)}"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(fused, [spread, lanes, sums])

    return total(total, number, values), emit


def _overload_operator(operation: Callable[..., Any], instruction: str) -> None:
    """Make an operator of two lanes, or of lanes and a number on either side."""

    @intrinsic
    def compute(typing_context: Any, left: Any, right: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return left(left, right), emit

    @overload(operation)
    def choose(left, right):  # type: ignore[no-untyped-def]
        if isinstance(left, LanesType) and left == right:
            return lambda left, right: compute(left, right)
        if isinstance(left, LanesType) and left.dtype == right:
            return lambda left, right: compute(left, _spread(right, left))
        if isinstance(right, LanesType) and right.dtype == left:
            return lambda left, right: compute(_spread(left, right), right)
        return None


_overload_operator(operator.add, "fadd")
_overload_operator(operator.sub, "fsub")
_overload_operator(operator.mul, "fmul")
