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
"""Columns whose sums `sums_of_products` makes at once."""


def sums_of_products(rows: int) -> Any:
    """A function ``(codes, apart, cells, pairs, sums, stride)``: products of int16 for `WIDTH` columns, in int32.

    At ``codes`` there are ``rows`` vectors of twice so many ``pairs`` numbers, ``apart`` bytes from one to the next. At
    ``cells`` two numbers of each column stand together, ``[pairs, WIDTH, 2]``: the pair of codes that they meet is the
    same for all columns, and their two products are added first, which processors do in one instruction (x86:
    ``pmaddwd``). Sums go to ``sums``, ``stride`` bytes from vector to vector.
    """

    @intrinsic  # type: ignore[untyped-decorator]  # numba's own
    def function(context: Any, codes: Any, apart: Any, cells: Any, pairs: Any, sums: Any, stride: Any) -> Any:
        def generate(target: Any, builder: Any, _: Any, given: Any) -> Any:
            address, wide = ir.IntType(64), ir.IntType(32)
            narrow, half = ir.VectorType(ir.IntType(16), WIDTH), ir.VectorType(wide, WIDTH // 2)
            codes_at, apart, cells_at, pairs, sums_at, stride = given

            def number(value: int) -> Any:
                return ir.Constant(address, value)

            def at(start: Any, *offsets: Any) -> Any:
                for offset in offsets:
                    start = builder.add(start, offset)
                return start

            def loaded(place: Any, kind: Any, align: int) -> Any:
                found = builder.load(builder.inttoptr(place, kind.as_pointer()))
                found.align = align
                return found

            def shuffled(vector: Any, places: list[int]) -> Any:
                mask = ir.Constant(ir.VectorType(wide, len(places)), places)
                return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)

            def everywhere(pair: Any) -> Any:
                one = builder.insert_element(ir.Constant(half, ir.Undefined), pair, ir.Constant(wide, 0))
                return builder.bitcast(shuffled(one, [0] * (WIDTH // 2)), narrow)

            def neighbours(x: Any, y: Any) -> Any:
                products = builder.mul(*(builder.sext(v, ir.VectorType(wide, WIDTH)) for v in (x, y)))
                return builder.add(*(shuffled(products, list(range(odd, WIDTH, 2))) for odd in (0, 1)))

            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(address)
            step.add_incoming(number(0), before)
            found = [[builder.phi(half) for _ in range(2)] for _ in range(rows)]
            place = at(cells_at, builder.mul(step, number(4 * WIDTH)))
            columns = [loaded(at(place, number(2 * WIDTH * part)), narrow, 2) for part in range(2)]
            grown = []
            for row in range(rows):
                place = at(codes_at, builder.mul(apart, number(row)), builder.mul(step, number(4)))
                pair = everywhere(loaded(place, wide, 2))
                grown.append([builder.add(found[row][part], neighbours(pair, columns[part])) for part in range(2)])
            following = builder.add(step, number(1))
            step.add_incoming(following, loop)
            for row in range(rows):
                for part in range(2):
                    found[row][part].add_incoming(ir.Constant(half, [0] * (WIDTH // 2)), before)
                    found[row][part].add_incoming(grown[row][part], loop)
            builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)
            builder.position_at_end(after)
            for row in range(rows):
                for part in range(2):
                    place = at(sums_at, builder.mul(stride, number(row)), number(2 * WIDTH * part))
                    stored = builder.store(grown[row][part], builder.inttoptr(place, half.as_pointer()))
                    stored.align = 4
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
