"""A streamed job from its first part to its last, in this process or on a Ray cluster."""

from __future__ import annotations

from typing import Any

from calibration.runs.climb import Climb
from calibration.runs.streaming import Stream, Way


def run(stream: Stream, way: Way) -> tuple[Climb, Any]:
    """Take every part through all arms.

    Returns:
        A climb with the results of the whole model, and what ``way.rise`` returns of it. Its fits hold no tensors,
        which stay in the folder.

    Raises:
        InputError: as the job.
    """
    if stream.request.engine == "ray":
        from calibration.runs.ray_stream import run_parts  # imports Ray, which is an extra

        run_parts(stream, way)
    else:
        keys = stream.keys(way, stream.request)
        for index in range(stream.through(way.folder), len(stream.model)):
            stream.mark_through(index, way, keys, stream.run_part(index, way, stream.request))
    whole = stream.of_all_parts(way)
    return whole, way.rise(whole, stream.request)
