"""What models that memory does not hold take: a random Llama block by block, beside what --dry-run said of its jobs.

    PYTHONPATH=. python benchmarks/scale.py [--blocks 24] [--models minilm smollm2 llama] [--jobs emulate calibrate]

The Llama has 1.3 billion parameters in bfloat16, a shard for each block, and is made in a folder of temporary files
(2.7 GB). Each job runs in a process of its own, on one thread; printed are its processor time and the most memory that
it had, with the estimates and what they are of the measured, and of the Llama the time of 6.7 billion parameters in
proportion. A Llama that takes 6 GiB or more ends with exit code 1. All blocks take as much memory: with ``--blocks 1``
the head, which is the last part, is there in minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.calibration.random_llama import write_llama

SCRIPT = Path(sys.executable).with_name("ohmformer")
MOST = 6 * 2**30
LARGER = 6.7e9
TASKS = {
    "minilm": ["--task", "wordsim"],
    "smollm2": ["--task", "perplexity", "--windows", "4"],
    "llama": ["--task", "perplexity", "--windows", "2", "--window-length", "128", "--stream", "true"],
}


def main() -> int:
    """Run what is asked for and print a line for each job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--models", nargs="+", choices=[*TASKS], default=["llama"])
    parser.add_argument("--jobs", nargs="+", choices=["emulate", "calibrate"], default=["emulate", "calibrate"])
    options = parser.parse_args()
    code = 0
    with tempfile.TemporaryDirectory(prefix="ohmformer-scale-") as place:
        for name in options.models:
            model, numbers = llama(Path(place) / "llama", options.blocks) if name == "llama" else (name, 0)
            for job in options.jobs:
                command = [job, "--model", model, *TASKS[name], "--times", "1d", "--chips", "1"]
                estimate = json.loads(run([*command, "--dry-run", "--json"])[0])
                way = "streamed_" if name == "llama" else ""
                said, bytes_ = estimate[f"{way}seconds"], estimate[f"{way}bytes"]
                _, seconds, most = run([*command, "--json"])
                print(
                    f"{name} {job}: {seconds:.0f} s of processor time, estimated {said:.0f} s ({said / seconds:.2f}); "
                    f"{most / 2**30:.2f} GiB, estimated {bytes_ / 2**30:.2f} GiB ({bytes_ / most:.2f})",
                    flush=True,
                )
                if numbers:
                    minutes = seconds * LARGER / numbers / 60
                    print(f"6.7 billion parameters in proportion: {minutes:.0f} min", flush=True)
                code |= int(name == "llama" and most >= MOST)
    return code


def llama(folder: Path, blocks: int) -> tuple[str, int]:
    """Write the model, 51 million parameters a block and 131 million more; its folder and how many there are."""
    numbers = write_llama(
        folder,
        dtype=torch.bfloat16,
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    print(f"a Llama of {numbers:,} parameters", flush=True)
    return str(folder), numbers


def run(command: list[Any]) -> tuple[str, float, int]:
    """What the command prints, its processor time in seconds, and the most bytes of memory that it had."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([str(SCRIPT), *command], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return printed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
