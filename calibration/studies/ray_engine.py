"""The engine ``ray``: an actor a worker, on the cluster that runs or on its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from calibration.models import Loaded
from calibration.runs.ray_cluster import join
from calibration.studies.events import Event, Finished, Lost, Ready
from calibration.studies.worker import Unit, Worker
from crossbar import InputError


class _Actor:
    """A worker somewhere in the cluster."""

    def __init__(self, models: dict[str, Any]) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        self._worker = Worker(lambda fingerprint: ray.get(models[fingerprint]))

    def ready(self) -> None:
        """Returns once the worker has started."""

    def run(self, unit: Unit) -> Iterable[Event]:
        """Results of a unit, each sent when it is there."""
        yield from self._worker.run(unit)


@dataclass
class _Running:
    """An actor, and what it is asked: whether it is ready (an object) or a unit (a stream of objects)."""

    actor: Any
    asked: Any
    is_ready: bool = False


class RayEngine:
    """One actor a worker, with one thread (and, for ``cuda``, one GPU) each; models are put into the cluster once.

    Actors that die, with their node or alone, are replaced as soon as there is room. A cluster that this engine started
    ends with it; one that ran before goes on.

    Args:
        loaded: models by fingerprint.
        workers: None: one for each core of the cluster (each GPU, for ``cuda``).
        devices: where setups are computed.

    Raises:
        InputError: for ``cuda`` in a cluster without a GPU.
    """

    def __init__(self, loaded: Mapping[str, Loaded], workers: int | None, devices: Iterable[str]) -> None:
        self._started = join()
        resource = "GPU" if "cuda" in devices else "CPU"
        there = int(ray.cluster_resources().get(resource, 0))
        if there == 0:
            self.close()
            raise InputError(f"the Ray cluster has no {resource}: run the study where there is one")
        self._models = {fingerprint: ray.put(model) for fingerprint, model in loaded.items()}
        needs = {"num_cpus": 1, "num_gpus": int(resource == "GPU"), "max_restarts": 0}
        self._class = ray.remote(**needs)(_Actor)
        self._running = [self._start() for _ in range(workers or there)]

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._running)

    def submit(self, worker: int, unit: Unit) -> None:
        """Have an actor run a unit."""
        one = self._running[worker]
        one.asked = one.actor.run.options(num_returns="streaming").remote(unit)

    def events(self, timeout: float) -> Iterable[tuple[int, Event]]:
        """Results of all actors that have some; one that is gone is replaced."""
        numbers = {one.asked: number for number, one in enumerate(self._running) if one.asked is not None}
        asked = list(numbers)
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout) if asked else ([], [])
        for found in ready:
            number = numbers[found]
            try:
                event = self._next(self._running[number])
            except RayError as error:
                yield number, Lost(" ".join(str(error).split()))
                self._running[number] = self._start()
            else:
                yield number, event

    def close(self) -> None:
        """Kill all actors, and end the cluster if this engine started it."""
        for one in getattr(self, "_running", []):
            ray.kill(one.actor)
        if self._started:
            ray.shutdown()

    def _start(self) -> _Running:
        actor = self._class.remote(self._models)
        return _Running(actor, actor.ready.remote())

    def _next(self, one: _Running) -> Event:
        if not one.is_ready:
            ray.get(one.asked)
            one.is_ready, one.asked = True, None
            return Ready()
        try:
            event: Event = ray.get(next(one.asked))
        except StopIteration:
            one.asked = None
            return Finished()
        return event
