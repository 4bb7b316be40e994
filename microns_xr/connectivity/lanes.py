"""One vector register of float64 as a type of numba, to add scaled rows of a matrix.

numba leaves a fixed inner loop over 8 columns as 8 scalar products, because it cannot know that the
arrays do not overlap. With the register as a type the loop over partners is one product and one
sum, 2.5 times faster on one thread. The width is the length of a tuple of floats, so that numba
makes one version of a kernel for each.

numba keeps compiled kernels until *their* file changes: after a change here, touch kernels.py.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic, models, register_model

__all__ = ["add_scaled", "load_row", "store_row", "zero_row"]


_intrinsic: Any = intrinsic  # its types do not know that the first argument is not passed


class _Lanes(types.Type):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Lanes({width})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: _Lanes) -> None:
        super().__init__(manager, fe_type, ir.VectorType(ir.DoubleType(), fe_type.width))


def _row_pointer(context: Any, builder: Any, ty: Any, array: Any, row: Any, width: int) -> Any:
    element = ir.FloatType() if ty.dtype == types.float32 else ir.DoubleType()
    start = builder.mul(row, ir.Constant(ir.IntType(64), width))
    pointer = builder.gep(context.make_array(ty)(context, builder, array).data, [start])
    return builder.bitcast(pointer, ir.PointerType(ir.VectorType(element, width)))


@_intrinsic
def load_row(_typing: Any, tag: Any, array: Any, row: Any) -> Any:
    """Row `row` of a C-contiguous (n, width) array of float32 or float64, as float64."""
    width = tag.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ty = signature.args[1]
        pointer = _row_pointer(context, builder, ty, args[1], args[2], width)
        if ty.dtype == types.float32:
            vector = ir.VectorType(ir.DoubleType(), width)
            return builder.fpext(builder.load(pointer, align=4), vector)
        return builder.load(pointer, align=8)

    return _Lanes(width)(tag, array, types.intp), codegen


@_intrinsic
def zero_row(_typing: Any, tag: Any) -> Any:
    """Make a register of zeros; `tag` is a tuple of as many floats."""
    width = tag.count

    def codegen(_context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return ir.Constant(ir.VectorType(ir.DoubleType(), width), None)

    return _Lanes(width)(tag), codegen


@_intrinsic
def add_scaled(_typing: Any, acc: Any, factor: Any, row: Any) -> Any:
    """``acc + factor * row``, rounded after the product and after the sum."""
    width = acc.width

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(ir.DoubleType(), width), ir.Undefined)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        first = builder.insert_element(undefined, args[1], ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(first, undefined, lanes)
        return builder.fadd(args[0], builder.fmul(factors, args[2]))

    return acc(acc, types.float64, row), codegen


@_intrinsic
def store_row(_typing: Any, acc: Any, array: Any, row: Any) -> Any:
    """Write the register to row `row` of a C-contiguous (n, width) array of float64."""
    width = acc.width

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _row_pointer(context, builder, signature.args[1], args[1], args[2], width)
        builder.store(args[0], pointer, align=8)
        return context.get_dummy_value()

    return types.void(acc, array, types.intp), codegen
