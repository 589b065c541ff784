"""What compiled kernels are made of: addresses to arrays, bits to numbers, a thread's share of the work.

A kernel is a C function for `crossbar.native.openmp.run`, compiled by numba when its module is first imported and kept
in numba's cache, which follows changes of the kernel's own file only (numba has no public way to name others): after a
change here, or in `crossbar.random.kernels` of what other kernels are compiled with, touch the kernel's file. What a C
function raises is lost, so division by 0 gives infinity or NaN, and a thread that comes to the end says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

SIGNATURE = types.void(types.CPointer(types.int64))
"""Of a kernel: a pointer to its arguments, each of 64 bits."""


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def as_float(context: Any, word: Any) -> Any:
    """The float32 with these 32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, given: builder.bitcast(given[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def as_bits(context: Any, number: Any) -> Any:
    """The 32 bits of a float32."""
    return types.uint32(types.float32), lambda _, builder, __, given: builder.bitcast(given[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def as_double(context: Any, word: Any) -> Any:
    """The float64 with these 64 bits."""
    return types.float64(types.int64), lambda _, builder, __, given: builder.bitcast(given[0], ir.DoubleType())


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def fma(context: Any, one: Any, other: Any, added: Any) -> Any:
    """``one * other + added`` of float32, rounded once. Nothing else is fused: no kernel is compiled with fast math."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.fma(*given)

    return types.float32(types.float32, types.float32, types.float32), generate


WIDTH = 16
"""Numbers of 16 bits that `sums_of_products` takes at once."""


def sums_of_products(rows: int, columns: int) -> Any:
    """A function ``(one, bytes, other, steps, sums, stride)``: products of a few vectors of int16, in int32.

    At ``one`` there are ``rows`` vectors, so many bytes apart, and at ``other`` ``columns``, one after another, each of
    ``steps`` times `WIDTH` numbers; the sum of products of vectors r and c goes to place ``r stride + c`` of ``sums``.
    Sums of neighbours are added first, which processors do in one instruction (x86: ``pmaddwd``), where numba's own
    loops take three.
    """

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def function(context: Any, one: Any, bytes: Any, other: Any, steps: Any, sums: Any, stride: Any) -> Any:
        def generate(target: Any, builder: Any, _: Any, given: Any) -> Any:
            address, narrow, wide = ir.IntType(64), ir.VectorType(ir.IntType(16), WIDTH), ir.IntType(32)
            half = ir.VectorType(wide, WIDTH // 2)
            zero, first = ir.Constant(half, [0] * (WIDTH // 2)), ir.Constant(address, 0)
            name = f"llvm.vector.reduce.add.v{WIDTH // 2}i32"
            total = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(wide, [half]), name)

            def place(start: Any, step: Any, number: int) -> Any:
                return builder.add(start, builder.mul(step, ir.Constant(address, number)))

            def loaded(start: Any, apart: Any, number: int) -> Any:
                found = builder.load(builder.inttoptr(place(start, apart, number), narrow.as_pointer()))
                found.align = 2
                return found

            def neighbours(x: Any, y: Any) -> Any:
                products = builder.mul(*(builder.sext(v, ir.VectorType(wide, WIDTH)) for v in (x, y)))
                undefined = ir.Constant(products.type, ir.Undefined)
                return builder.add(
                    *(
                        builder.shuffle_vector(products, undefined, ir.Constant(half, list(range(odd, WIDTH, 2))))
                        for odd in (0, 1)
                    )
                )

            left_at, apart, right_at, steps, sums, stride = given
            size = builder.mul(steps, ir.Constant(address, 2 * WIDTH))
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(address)
            step.add_incoming(first, before)
            found = [[builder.phi(half) for _ in range(columns)] for _ in range(rows)]
            offset = builder.mul(step, ir.Constant(address, 2 * WIDTH))
            left = [loaded(builder.add(left_at, offset), apart, r) for r in range(rows)]
            right = [loaded(builder.add(right_at, offset), size, c) for c in range(columns)]
            grown = [
                [builder.add(found[r][c], neighbours(left[r], right[c])) for c in range(columns)] for r in range(rows)
            ]
            following = builder.add(step, ir.Constant(address, 1))
            step.add_incoming(following, loop)
            for r in range(rows):
                for c in range(columns):
                    found[r][c].add_incoming(zero, before)
                    found[r][c].add_incoming(grown[r][c], loop)
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
            builder.position_at_end(after)
            for r in range(rows):
                for c in range(columns):
                    at = builder.add(
                        place(sums, builder.mul(stride, ir.Constant(address, 4)), r), ir.Constant(address, 4 * c)
                    )
                    builder.store(builder.call(total, [grown[r][c]]), builder.inttoptr(at, wide.as_pointer()))
            return target.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return function


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def pointer(context: Any, address: Any) -> Any:
    """What stands at an address."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _called(context: Any, address: Any) -> Any:
    """What the C function at an address, ``int function(void)``, returns."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.call(builder.inttoptr(given[0], function), [])

    return types.int32(types.int64), generate


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def share(given: Any, work: int) -> Any:
    """The part of the work, from and to, that the calling thread does: neighbours, as torch's products share them."""
    thread, threads = _place(given)
    return work * thread // threads, work * (thread + 1) // threads


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _place(given: Any) -> Any:
    """The number of the calling thread, and how many there are: maybe fewer than were asked for."""
    shared = carray(pointer(given[0]), 2, np.int64)
    thread, threads = 0, 1
    if shared[0] != 0:
        thread, threads = _called(shared[0]), _called(shared[1])
    return thread, threads


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def done(given: Any) -> None:
    """Tell `crossbar.native.openmp.run` that the calling thread came to the end: what a C function raises is lost."""
    thread, threads = _place(given)
    shared = carray(pointer(given[0]), 2 + given[1], np.int64)
    shared[2 + thread] = threads
