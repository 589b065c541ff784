"""How a number travels on a line: one event, an event a bit, a train of pulses, or one event at a telling time."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from attention.controller.events import Axis, Events
from attention.patterns.intervals import repeat
from crossbar.errors import InputError, require_whole

Coding = Literal["pwm", "bit_serial", "rate", "ttfs"]


def slots(coding: Coding, bits: int) -> int:
    """Times that a step is cut into: 1, the bits of a magnitude, its largest value, or that and a time for 0.

    Raises:
        InputError: for an unknown coding or a number of bits outside 2 to 16.
    """
    if coding not in get_args(Coding):
        raise InputError(f"coding {coding!r} is not known: choose one of {', '.join(get_args(Coding))}")
    require_whole("bits", bits, least=2, most=16)
    largest = (1 << (bits - 1)) - 1
    lengths: dict[Coding, int] = {"pwm": 1, "bit_serial": bits - 1, "rate": largest, "ttfs": largest + 1}
    return lengths[coding]


def encode(events: Events, coding: Coding, bits: int) -> Events:
    """The same stream with the payloads of driven lines coded in so many bits, one of them the sign.

    Time runs faster by `slots`: a step t becomes the times ``t · slots`` to ``(t + 1) · slots − 1``. Sensed lines carry
    nothing, and stay one event at the start of their step.

    - ``pwm``: as it is: the length of one pulse is the payload.
    - ``bit_serial``: an event for each bit of the magnitude, the least significant first, zeros too, with the bit's
      worth as payload, so that the payloads of a number sum to it.
    - ``rate``: as many events of payload 1 (or −1) as the number is large, none for 0.
    - ``ttfs``, time to first spike: one event of payload 1 (or −1) at ``T_max − |payload|`` in its step.

    Raises:
        InputError: for payloads that do not fit the bits.
    """
    length = slots(coding, bits)
    limit = 2 ** (bits - 1) - 1
    driven = events.axis == Axis.ROW
    size = torch.where(driven, events.payload.abs(), 0).long()
    if len(size) and int(size.max()) > limit:
        raise InputError(f"a payload of {int(size.max())} does not fit {bits} bits with a sign: give at most {limit}")
    time = events.time * length
    if coding == "pwm":
        return events
    if coding == "ttfs":
        sign = torch.where(events.payload < 0, -1, 1).to(torch.int32)
        coded = events._replace(
            time=time + torch.where(driven, limit - size, 0), payload=torch.where(driven, sign, events.payload)
        )
        return coded.where(coded.time.argsort(stable=True))
    times = torch.where(driven, length if coding == "bit_serial" else size, 1)
    event = repeat(torch.arange(len(size), device="cpu"), times)
    place = torch.arange(len(event), device="cpu") - (times.cumsum(0) - times)[event]
    coded = events.where(event)
    of_driven, sign = driven[event], torch.where(coded.payload < 0, -1, 1)
    pulse = (size[event] >> place & 1) << place if coding == "bit_serial" else torch.ones_like(place)
    payload = torch.where(of_driven, sign * pulse, coded.payload).to(torch.int32)
    coded = coded._replace(time=time[event] + torch.where(of_driven, place, 0), payload=payload)
    return coded.where(coded.time.argsort(stable=True))


def decode(events: Events, coding: Coding, bits: int) -> Events:
    """`encode` backwards, in the order of time, tile, line and query; numbers that ``rate`` sent as 0 are not there."""
    length, limit = slots(coding, bits), 2 ** (bits - 1) - 1
    driven = events.axis == Axis.ROW
    step = events.time.div(length, rounding_mode="floor")
    worth: Tensor = events.payload.long()
    if coding == "ttfs":
        worth = torch.where(driven, worth * (limit - events.time % length), worth)
    place = torch.stack([step, events.tile.long(), events.line.long(), events.axis.long(), events.query.long()], 1)
    found, which = torch.unique(place, dim=0, return_inverse=True)
    payload = torch.zeros(len(found), dtype=torch.int64, device=found.device).index_add_(0, which, worth)
    return Events(
        time=found[:, 0],
        tile=found[:, 1].int(),
        line=found[:, 2].int(),
        axis=found[:, 3].to(torch.int8),
        payload=payload.int(),
        query=found[:, 4].int(),
    )
