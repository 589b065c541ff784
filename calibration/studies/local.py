"""The engine ``local``: one process a worker on this machine, one thread each, and for ``cuda`` one GPU each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any

from calibration.studies.events import Event, Finished, Lost, Ready
from calibration.studies.worker import Failed, Scored, Unit, Worker
from crossbar import InputError

SCRIPT = str(Path(__file__).with_name("worker_process.py"))
_KINDS = {kind.__name__: kind for kind in (Ready, Scored, Failed, Finished)}


@dataclass
class _Process:
    """A worker's process, the pipe to it, and a file with what it says on standard error."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    said: IO[bytes]


class LocalEngine:
    """Processes that talk JSON over pipes. They end when this process does, however it ends.

    Args:
        sources: names or folders of models by fingerprint.
        workers: how many.
        gpus: which one each worker sees, as `visible_gpus` names them; empty: all see what this process does.
    """

    def __init__(self, sources: Mapping[str, str], workers: int, gpus: Sequence[str] = ()) -> None:
        self._sources, self._gpus = dict(sources), list(gpus)
        self._running = [self._start(number) for number in range(workers)]

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._running)

    def submit(self, worker: int, unit: Unit) -> None:
        """Send a unit; a pipe that is broken shows in `events`."""
        try:
            self._running[worker].pipe.send_bytes(json.dumps(asdict(unit)).encode())
        except OSError:
            self._running[worker].process.kill()

    def events(self, timeout: float) -> Iterable[tuple[int, Event]]:
        """Messages of all workers that have sent some; a pipe that ended means a worker that is lost."""
        ready = wait([one.pipe for one in self._running], timeout)
        for number, one in enumerate(self._running):
            if one.pipe in ready:
                try:
                    message = json.loads(one.pipe.recv_bytes())
                except (EOFError, OSError):
                    yield number, Lost(self._last_words(one))
                    self._stop(one)
                    self._running[number] = self._start(number)
                else:
                    yield number, _KINDS[message["kind"]](**message["values"])

    def close(self) -> None:
        """Kill all workers."""
        for one in self._running:
            self._stop(one)

    def _start(self, number: int) -> _Process:
        ours, theirs = Pipe()
        # Threads of two workers that share cores would wait for each other; these are read when libraries load.
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        seen = {"CUDA_VISIBLE_DEVICES": self._gpus[number]} if self._gpus else {}
        environment = {**os.environ, **threads, **seen, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the worker is lost
        process = subprocess.Popen(
            [sys.executable, "-P", SCRIPT, str(theirs.fileno()), str(os.getpid()), json.dumps(self._sources)],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C on the terminal is for the process that owns the store
        )
        theirs.close()
        return _Process(process, ours, said)

    def _stop(self, one: _Process) -> None:
        one.process.kill()
        one.process.wait()
        one.pipe.close()
        one.said.close()

    def _last_words(self, one: _Process) -> str:
        code = one.process.wait()
        one.said.seek(0)
        lines = one.said.read().decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"process {one.process.pid} ended with code {code} ({words})"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, each as ``CUDA_VISIBLE_DEVICES`` names it; CUDA is not started for it."""
    import torch

    if not torch.cuda.is_available():
        return []
    numbers, named = range(torch.cuda.device_count()), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in numbers] if named is None else named.split(",")[: len(numbers)]


def serve(pipe: Connection, sources: Mapping[str, str]) -> None:
    """Compute the units that come through a pipe, until its other end is closed."""
    from calibration.models import Loaded, load_model

    loaded: dict[str, Loaded] = {}

    def load(fingerprint: str) -> Loaded:
        if fingerprint not in loaded:
            loaded.clear()  # one model at a time: cells come model by model
            loaded[fingerprint] = load_model(sources[fingerprint])
            if loaded[fingerprint].fingerprint != fingerprint:
                raise InputError(f"model {sources[fingerprint]!r} has changed since the study began: start it again")
        return loaded[fingerprint]

    def say(event: Any) -> None:
        pipe.send_bytes(json.dumps({"kind": type(event).__name__, "values": asdict(event)}).encode())

    worker = Worker(load)
    say(Ready())
    while True:
        unit = json.loads(pipe.recv_bytes())
        for result in worker.run(Unit(**{**unit, "seconds": tuple(unit["seconds"])})):
            say(result)
        say(Finished())
