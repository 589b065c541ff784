"""Compiled loops over events, each one pass over its arrays, on one thread.

Compiled by numba when first called and kept in its cache. Arrays are numpy's, of the dtypes of
`attention.controller.events.Events`; results are written into arrays that the caller gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from attention.controller.events import DROPPED


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def issue(indptr: Any, token: Any, places: Any, first: int, fields: Any) -> None:
    """The events of a CSR's rows: of each row its pairs' score events, then its pairs' value events.

    Args:
        indptr: int64 [rows + 1], into ``token``.
        token: int64, attended keys.
        places: tile and line of each key, int32 [N] both.
        first: the first row's query.
        fields: time, tile, line, axis, payload and query of the events, which come out.
    """
    tile_of, line_of = places
    time, tile, line, axis, payload, query = fields
    at = 0
    for row in range(len(indptr) - 1):
        keys = token[indptr[row] : indptr[row + 1]]
        for stage in range(2):  # apart, loop by loop, so that each becomes vector instructions
            end = at + len(keys)
            for here, there in ((tile[at:end], tile_of), (line[at:end], line_of)):
                for i in range(len(keys)):
                    here[i] = there[np.uint64(keys[i])]
            time[at:end] = 2 * (first + row) + stage
            axis[at:end] = 1 - stage  # Axis.COL comes before Axis.ROW
            payload[at:end] = 1
            query[at:end] = first + row
            at = end


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def rises(numbers: Any) -> bool:
    """Whether no number is less than the one before it."""
    falls = 0
    for i in range(1, len(numbers)):
        falls += numbers[i] < numbers[i - 1]
    return falls == 0


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def counted(tile: Any, axis: Any, query: Any, first: int, seen: Any) -> Any:
    """Events of each axis, and tiles that have one, summed over queries: int64 [2, axes].

    ``seen`` is False [queries, axes, tiles], for queries from ``first``; it is overwritten.
    """
    found = np.zeros((2, seen.shape[1]), np.int64)
    begin = 0
    for event in range(1, len(tile) + 1):  # in runs that touch one tile, which streams have long ones of
        if (
            event == len(tile)
            or tile[event] != tile[begin]
            or query[event] != query[begin]
            or axis[event] != axis[begin]
        ):
            row, side = query[begin] - first, axis[begin]
            found[0, side] += event - begin
            found[1, side] += not seen[row, side, tile[begin]]
            seen[row, side, tile[begin]] = True
            begin = event
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def fifo(order: Any, arrive: Any, port: Any, service: int, last: Any, depart: Any, depth: Any) -> None:
    """``depart_i = max(arrive_i, depart_(i-1)) + s`` at each port; arguments as `attention.controller.timing.fifo`.

    ``order`` lists the events by arrival; empty: as they stand.
    """
    for i in range(len(arrive)):
        event = order[i] if len(order) else i
        where, came = port[event], arrive[event]
        done = max(came, last[where]) + service
        last[where] = depart[event] = done
        depth[event] = (done - came + service - 1) // service if service else 1


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def drop_new(order: Any, arrive: Any, port: Any, service: int, queue: int, last: Any, depart: Any, depth: Any) -> None:
    """`fifo` with ports that lose what comes while they hold ``queue`` events."""
    for i in range(len(arrive)):
        event = order[i] if len(order) else i
        where, came = port[event], arrive[event]
        work = max(0, last[where] - came)
        queued = (work + service - 1) // service
        if queued < queue:
            last[where] = depart[event] = came + work + service
        else:
            depart[event] = DROPPED
        depth[event] = min(queued + 1, queue)


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def drop_old(order: Any, arrive: Any, port: Any, service: int, queue: int, ports: int, depart: Any, depth: Any) -> None:
    """`fifo` with ports at which a new event drives out the one that has waited longest.

    Those that wait at a port are a linked list, so that memory follows events and not the length of queues.
    """
    free = np.full(ports, np.iinfo(np.int64).min)
    oldest, newest, waiting = np.zeros(ports, np.int64), np.zeros(ports, np.int64), np.zeros(ports, np.int64)
    behind = np.zeros(len(arrive), np.int64)
    depart[:] = DROPPED
    for i in range(len(arrive)):
        event = order[i] if len(order) else i
        where, came = port[event], arrive[event]
        while waiting[where] and free[where] <= came:
            free[where] += service
            depart[oldest[where]] = free[where]
            oldest[where] = behind[oldest[where]]
            waiting[where] -= 1
        if free[where] <= came:
            free[where] = depart[event] = came + service
        elif queue > 1:
            if waiting[where] + 1 == queue:
                oldest[where] = behind[oldest[where]]
                waiting[where] -= 1
            if waiting[where]:
                behind[newest[where]] = event
            else:
                oldest[where] = event
            newest[where] = event
            waiting[where] += 1
        depth[event] = waiting[where] + 1
    for where in range(ports):
        for _ in range(waiting[where]):
            free[where] += service
            depart[oldest[where]] = free[where]
            oldest[where] = behind[oldest[where]]


@njit(cache=True)  # type: ignore[untyped-decorator]  # numba's own
def totals(issued: Any, depart: Any, depth: Any, until: int, queue: int) -> tuple[int, int, int, int, int, int]:
    """Delivered by ``until``, dropped, sum and largest of the delivered events' waits, depth, beyond a queue."""
    delivered, dropped, waited, longest, deepest, beyond = 0, 0, 0, 0, 0, 0
    for event in range(len(issued)):
        dropped += depart[event] == DROPPED
        deepest = max(deepest, depth[event])
        beyond += depth[event] > queue
        if depart[event] != DROPPED and depart[event] <= until:
            delivered += 1
            waited += depart[event] - issued[event]
            longest = max(longest, depart[event] - issued[event])
    return delivered, dropped, waited, longest, deepest, beyond
