"""What the kernels of GPUs take of a card, without one: each is compiled for compute capability 9.0.

For each kernel, as it is launched for large products, for few input vectors and so on: registers of a thread, bytes
that do not fit them and go to memory instead (spills), shared memory of a block, warps, how many blocks of it a
multiprocessor of an H100 (65,536 registers, 227 KiB) holds at once, and instructions of the longest loop, which is that
of a tile in products: each instruction takes 32 threads one of the four issue slots of a cycle. Compiled by the ptxas
that comes with Triton. Fails where a kernel has float32 operations that are not rounded to nearest, as the CPU's are.
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

from rich.console import Console
from rich.table import Table

REGISTERS, SHARED = 65_536, 227 * 1024  # of a multiprocessor of an H100 (NVIDIA H100 architecture whitepaper, 2022)


class Kernel(NamedTuple):
    """A kernel as it is launched.

    Attributes:
        name: for the table.
        function: compiled by Triton.
        pointers: types of its pointers, by a word that their names begin with, such as ``{"codes": "i8"}``; float32
            for the others.
        scalars: names of its arguments that are float32; the other ones that are no pointers are int32.
        constants: what it is compiled for.
        warps: of 32 threads each.
    """

    name: str
    function: Any
    pointers: dict[str, str]
    scalars: tuple[str, ...]
    constants: dict[str, Any]
    warps: int = 4


class Usage(NamedTuple):
    """Registers of a thread, bytes of spills, bytes of a block's shared memory, its warps, and `longest_loop`."""

    registers: int
    spills: int
    shared: int
    warps: int
    loop: int

    @property
    def blocks(self) -> int:
        """Blocks on a multiprocessor at once; registers are given out in eights."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * 32 * self.warps)
        return min(by_registers, SHARED // max(self.shared, 1), 32)


def kernels() -> list[Kernel]:
    """Every kernel, in the forms that matter."""
    from crossbar.backends.triton import triton_kernels as tiles
    from crossbar.random import triton_kernels as random
    from crossbar.tiles import triton_kernels as cells

    numbers = {"numbers": "fp32"}
    found = [
        Kernel("normal numbers of columns", random.fill, numbers, (), {"BLOCK": 512}),
        Kernel("normal numbers of a tensor", random.fill_part, numbers, (), {"BLOCK": 512}),
        Kernel("words", random.fill_words, {"numbers": "i32"}, (), {"UNIFORM": False, "BLOCK": 512}),
        Kernel(
            "PCM programmed and read, pairs", cells.pcm, {"targets": "fp32", "found": "fp32"},
            ("none", "g_max", "size", "prog_scale", "drift_scale", "decades", "band"), {"PAIR": True, "BLOCK": 512},
        ),
        Kernel(
            "cells for training", cells.fresh, {"cells": "fp32", "table": "fp32"}, ("g_min", "steps", "low", "high"),
            {"BLOCK": 512},
        ),
        Kernel(
            "cells in fixed point", tiles.fix, {"digits": "fp32", "cells": "i8", "steps": "fp32"}, ("largest", "least"),
            {"ROWS": 256, "PADDED": 256, "BR": 64, "BC": 32},
        ),
        Kernel(
            "codes and constants", tiles.prepare,
            {"x": "bf16", "codes": "i8", "full_scale": "fp32", "power": "fp32", "steps": "fp32", "scales": "fp32",
             "constants": "fp32"},
            ("given", "levels", "least", "step", "adc_levels", "noise"),
            {"ranges": None, "adc_range": None, "offset": None, "variance": None, "ROWS": 256, "PADDED": 256,
             "FOUND": 0, "RANGE": 0, "COLUMNS": False, "NOISE": True, "OFFSET": False, "CELLS": False,
             "BV": 1, "BLOCK": 1024, "BR": 256},
        ),
        Kernel(
            "rows of any age", tiles.age_rows,
            {"programmed": "fp32", "exponent": "fp32", "amplitude": "fp32", "place": "i64", "halvings": "fp32",
             "band": "fp32", "start": "i64", "key": "i64", "digits": "fp32"},
            ("unit", "constant", "relative"),
            {"variance": None, "EXPONENT": True, "AMPLITUDE": True, "VARIANCE": False, "BL": 16, "BLOCK": 64},
        ),
    ]  # fmt: skip
    found += _products()
    found += _attention()
    return found


def _products() -> list[Kernel]:
    """Products of tiles with many vectors, with some and with one."""
    from crossbar.backends.triton import products
    from crossbar.backends.triton import triton_kernels as tiles

    pointers = {
        "codes": "i8", "cells": "i8", "constants": "fp32", "power": "fp32", "full_scale": "fp32", "out": "fp32",
        "inside": "i8",
    }  # fmt: skip
    plain = {
        "PADDED": 256, "BK": 256, "inside": None, "INSIDE": False, "LEFT": False, "SHIFT": True, "NOISE": True,
        "EVEN": True, "OFFSET": False, "CELLS": False, "COLUMNS": False,
    }  # fmt: skip
    forms: dict[str, dict[str, Any]] = {
        "quiet": {"NOISE": False},
        "noise": {},
        "cells' noise": {"CELLS": True},
        "noise, offsets, ranges of columns": {"OFFSET": True, "EVEN": False},
        "training": {"INSIDE": True},
        "training of ranges": {"INSIDE": True, "LEFT": True, "EVEN": False},
    }
    of_many: dict[str, dict[str, Any]] = {
        **forms,
        "training, cells' noise": {"INSIDE": True, "CELLS": True},
        "columns one by one": {"COLUMNS": True},
        "tiles of 1,024 rows": {"PADDED": 1024, "SHIFT": False},
    }
    found = []
    for vectors, text, each in ((4096, "many vectors", of_many), (32, "32 vectors", forms), (1, "one vector", forms)):
        for name, own in each.items():
            constants = {**plain, **own}
            blocks = products.blocks_for(vectors, constants["PADDED"], constants["CELLS"] + constants["INSIDE"])
            sizes = {"BB": blocks.vectors, "BO": blocks.columns, "GROUP": blocks.group, "STAGES": blocks.stages}
            types = {**pointers, "inside": "fp16" if constants["LEFT"] else "i8"}
            constants |= sizes
            if constants["INSIDE"]:
                del constants["inside"]
            found.append(
                Kernel(f"product, {text}, {name}", tiles.multiply, types, ("levels",), constants, blocks.warps)
            )
    return found


def _attention() -> list[Kernel]:
    """Attention on rows, forwards and backwards: of half precision, and with heads of 128."""
    from attention.kernel import fused
    from attention.kernel import triton_kernels as attention

    pointers = {
        "q": "bf16", "key_high": "fp16", "key_low": "fp16", "key_scale": "fp32", "key_variance": "fp32",
        "value_high": "fp16", "value_low": "fp16", "value_scale": "fp32", "value_variance": "fp32", "real": "u8",
        "streams": "i32", "bounds": "i32", "entries": "i32", "numbers": "i32", "masks": "u8", "tokens": "i32",
        "output": "bf16", "lse": "fp32", "state": "fp32", "runs": "i32", "blocks": "i32", "order": "i32",
        "items": "i32", "chunk_of": "i32", "items_of": "i32", "grad_output": "bf16", "grad_lse": "fp32",
        "grad_q": "fp32", "common": "fp32", "inside": "u8", "part_of_keys": "fp32", "part_of_values": "fp32",
        "grad_keys": "fp32", "grad_values": "fp32",
    }  # fmt: skip
    scalars = ("dac_levels", "dac_range", "adc_levels", "step", "noise")

    def kernel(name: str, function: Any, size: int, block: tuple[int, int], **own: Any) -> Kernel:
        constants = {
            "BM": block[0], "BN": block[1], "DP": size, "CHUNKS": 256 // block[1], "PARTS": 1, "STATIC": False,
            "NOISE": True, "CELLS": False, "ADC": True, "SPAN": False, "PADDING": False, "PLACED": False,
            "TRAINED": False, "PRECISION": "tf32", **own,
        }  # fmt: skip
        names = function.arg_names
        given = {name: value for name, value in constants.items() if name in names}
        warps = fused.warps_for(size)
        return Kernel(name, function, {k: v for k, v in pointers.items() if k in names}, scalars, given, warps)

    found = []
    for size, noisy in ((64, False), (64, True), (128, False), (128, True)):
        name = f"rows, heads of {size}{', noise of cells' if noisy else ''}"
        block, back = fused.block_for(4096, size, noisy), fused.back_for(noisy)
        one = fused.block_for(1, size, noisy)
        if not noisy:
            found.append(kernel(f"attention on {name}, quiet", attention.attend, size, block, NOISE=False))
        found += [
            kernel(f"attention on {name}", attention.attend, size, block, TRAINED=True, CELLS=noisy),
            kernel(f"decoding a token on {name}", attention.attend, size, one, PLACED=True, CELLS=noisy),
            kernel(f"gradients of queries, {name}", attention.attend_queries, size, back, CELLS=noisy),
            kernel(f"gradients of keys and values, {name}", attention.attend_keys, size, back, CELLS=noisy),
        ]
    back = fused.back_for(False)
    odd = {"SPAN": True, "STATIC": True, "PADDING": True}
    found += [
        kernel(
            "attention on rows, static ranges, padding", attention.attend, 64, fused.block_for(4096, 64, False), **odd
        ),
        kernel("gradients of queries, static ranges, padding", attention.attend_queries, 64, back, **odd),
        kernel("gradients of keys and values, the same", attention.attend_keys, 64, back, **odd),
        *(
            own._replace(pointers={**own.pointers, "q": "fp32", "grad_output": "fp32"})
            for own in (
                kernel("gradients of queries, float32", attention.attend_queries, 64, back, PRECISION="tf32x3"),
                kernel("gradients of keys and values, float32", attention.attend_keys, 64, back, PRECISION="tf32x3"),
            )
        ),
        kernel("gradients of chunks", attention.collect, 64, back),
    ]
    return found


def usage(kernel: Kernel) -> Usage:
    """Compile a kernel, and read what ptxas says of it."""
    import triton
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from crossbar.native import gpu

    names, types, aligned = kernel.function.arg_names, {}, {}
    for place, name in enumerate(names):
        if name in kernel.constants:
            types[name] = "constexpr"
        elif name in kernel.pointers:
            types[name] = f"*{kernel.pointers[name]}"
            aligned[(place,)] = [["tt.divisibility", 16]]  # as torch's tensors begin
        else:
            types[name] = "fp32" if name in kernel.scalars else "i32"
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    source = ASTSource(fn=kernel.function, signature=types, constexprs=constants, attrs=aligned)
    options = {**gpu.OPTIONS, "num_warps": kernel.warps}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(compiled.asm["ptx"])
        tools, cubin = Path(nvidia.__file__).parent / "bin", path.with_suffix(".cubin")
        given = [tools / "ptxas", "--verbose", "--fmad=false", "--gpu-name=sm_90a", path, "-o", cubin]
        said = subprocess.run(given, capture_output=True, text=True, check=True).stderr
        code = subprocess.run([tools / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    other = set(re.findall(r"\b(?:div|sqrt|fma|mul|add|sub)\.(?!rn\.)[a-z0-9.]+f32", compiled.asm["ptx"]))
    assert not other, f"{kernel.name} has operations that are not rounded to nearest: {other}"
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None
    assert spilled is not None
    metadata = compiled.metadata
    return Usage(int(registers[1]), int(spilled[1]), metadata.shared, metadata.num_warps, longest_loop(code))


def longest_loop(code: str) -> int:
    """Instructions of the longest loop of machine code, from a label to the last branch back to it."""
    labels, longest, count = dict[str, int](), 0, 0
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif re.match(r"\s+/\*[0-9a-f]+\*/", line):
            count += 1
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if back is not None and back[1] in labels:
                longest = max(longest, count - labels[back[1]])
    return longest


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    view = Table(title="Kernels compiled for sm_90", title_justify="left")
    for name in ("kernel", "registers", "spills", "shared", "warps", "blocks at once", "longest loop"):
        view.add_column(name, justify="left" if name == "kernel" else "right")
    for kernel in kernels():
        found = usage(kernel)
        sizes = f"{found.spills} B", f"{found.shared / 1024:.1f} KiB"
        view.add_row(kernel.name, str(found.registers), *sizes, *map(str, (found.warps, found.blocks, found.loop)))
    Console(width=140).print(view)


if __name__ == "__main__":
    main()
