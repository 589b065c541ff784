"""Parts of a streamed model as tasks of a Ray cluster, which runs them beside whatever else it has."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from calibration.runs.ray_cluster import joined
from calibration.runs.streaming import Stream, Way
from crossbar import InputError


def run_parts(stream: Stream, way: Way) -> None:
    """Take every part through all arms, each chip of a part in a task of its own.

    The digital model, what is fitted before programming, and the first chip are one task, since the other chips go on
    with what it finds. It waits for that of the part before; a chip's waits for the first of its part, and for its own
    of the part before. So a chip may be in one block while another is in the next. Tasks talk through the folder, as a
    stream does that was stopped, and those that are lost with their worker are computed again.

    Args:
        stream: the job.
        way: of the job; all nodes of the cluster must find its folder, and the model's, under the same paths.

    Raises:
        InputError: as the job, and for a cluster without a CPU.
        RuntimeError: for a task that fails, or is lost again and again.
    """
    with joined():
        if not ray.cluster_resources().get("CPU"):
            raise InputError("the Ray cluster has no CPU: run the job where there is one")
        tasks = _submit(stream, replace(way, folder=way.folder.resolve()))
        keys, done, total = stream.keys(way, stream.request), 0, sum(map(len, tasks.values()))
        try:
            for index, of_part in tasks.items():
                for chip, task in zip(stream.request.chips, of_part, strict=True):
                    if stream.progress is not None:
                        stream.progress(done, total, f"{stream.name_of(index)}, chip {chip}")
                    for sentence in ray.get(task):
                        if stream.notify is not None:
                            stream.notify(sentence)
                    done += 1
                stream.mark_through(index, way, keys)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise RuntimeError(f"a block failed on the Ray cluster: {error.cause!r}") from error
        except RayError as error:
            raise RuntimeError(f"blocks were lost on the Ray cluster: {' '.join(str(error).split())}") from error
        finally:
            for of_part in tasks.values():
                for task in of_part:
                    ray.cancel(task, force=True)


def _submit(stream: Stream, way: Way) -> dict[int, list[Any]]:
    """The tasks of all parts that are not through, a chip each, by part."""
    run, request = ray.remote(num_cpus=1)(_run), stream.request
    there = ray.put(_alone(stream)), ray.put(way)
    tasks: dict[int, list[Any]] = {}
    for index in range(stream.through(way.folder), len(stream.model)):
        before, earlier = (tasks.get(index - back, []) for back in (1, 2))
        # All chips of two parts before: so that what is handed on lies on the disk for few parts at a time.
        first = run.remote(*there, index, request.chips[:1], *before[:1], *earlier)
        tasks[index] = [first]
        for place, chip in enumerate(request.chips[1:], 1):
            both = range(request.chips[0], chip + 1, place)
            tasks[index].append(run.remote(*there, index, both, first, *before[place : place + 1]))
    return tasks


def _alone(stream: Stream) -> Stream:
    """A stream that can be sent: nobody is told of it."""
    alone = copy.copy(stream)
    alone.progress = alone.notify = None
    return alone


def _run(stream: Stream, way: Way, index: int, chips: range, *after: Any) -> list[str]:
    """Take a part through the arms of some chips; returns what there is to tell.

    Args:
        stream: the job.
        way: of the job.
        index: of the part.
        chips: the first one, whose results are there for others, and at most one other.
        after: what tasks before returned.
    """
    torch.set_num_threads(1)
    told: list[str] = []
    stream.notify = told.append
    first = len(chips) == 1
    stream.run_part(index, way if first else replace(way, made=None), replace(stream.request, chips=chips))
    return told
