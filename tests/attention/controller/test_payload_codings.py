"""Payloads coded as pulses, bits, trains and times, and streams on disk."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention import Axis, Controller, Events, LocalWindow, Placement, Sinks, accumulate
from attention.controller import platforms
from attention.controller.codings import decode, encode, slots
from attention.controller.event_files import load_events, save_events
from crossbar import InputError

CONTROLLER = Controller(platforms.ideal(rows=8))
CODINGS = ("pwm", "bit_serial", "rate", "ttfs")


def stream(n, seed, bits=5):
    pattern, placement = (LocalWindow(5) | Sinks(2)).causal(), Placement.sequential(n, 8)
    events = CONTROLLER.events(pattern.rows(n), placement)
    limit = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-limit, limit + 1, (int((events.axis == Axis.ROW).sum()),), generator=generator)
    return events.with_weights(weights), placement


@given(st.sampled_from(CODINGS), st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_what_is_coded_is_decoded(coding, n, seed):
    events, _ = stream(n, seed)
    coded = encode(events, coding, 5)
    assert (coded.time.diff() >= 0).all()
    assert torch.equal(coded.time.div(slots(coding, 5), rounding_mode="floor").unique(), events.time.unique()) or (
        coding == "rate"  # a step of zeros sends nothing
    )
    found, wanted = decode(coded, coding, 5), decode(events, "pwm", 5)
    if coding == "rate":
        wanted = wanted.where((wanted.payload != 0) | (wanted.axis == Axis.COL))
    for name in Events._fields:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@given(st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_numbers_of_events_and_exact_sums(n, seed):
    events, placement = stream(n, seed)
    v = torch.randint(-9, 10, (n, 3), generator=torch.Generator().manual_seed(seed))
    driven, sensed = len(events.of(Axis.ROW).time), len(events.of(Axis.COL).time)
    sizes = int(events.of(Axis.ROW).payload.abs().sum())
    for coding, number in (("pwm", driven), ("bit_serial", 4 * driven), ("rate", sizes), ("ttfs", driven)):
        coded = encode(events, coding, 5)
        assert len(coded.of(Axis.ROW).time) == number
        assert len(coded.of(Axis.COL).time) == sensed
        if coding != "ttfs":  # there the number is in the time
            assert torch.equal(accumulate(coded, placement, v, n), accumulate(events, placement, v, n))


def test_a_large_number_fires_early():
    events, _ = stream(3, 0)
    coded = encode(events, "ttfs", 5).of(Axis.ROW)
    sizes = decode(encode(events, "ttfs", 5), "ttfs", 5).of(Axis.ROW).payload.abs()
    assert sorted((15 - coded.time % 16).tolist()) == sorted(sizes.tolist())


def test_streams_are_read_back_bit_for_bit(tmp_path):
    events, _ = stream(12, 3)
    save_events(events, tmp_path / "events.safetensors")
    for a, b in zip(load_events(tmp_path / "events.safetensors"), events, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["events.safetensors"]


def test_files_that_hold_no_events_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other")
    (tmp_path / "broken").write_bytes(b"\x00" * 30)
    for name, named in (("none", "does not exist"), ("other", "holds no events"), ("broken", "cannot be read")):
        with pytest.raises(InputError, match=named):
            load_events(tmp_path / name)
    with pytest.raises(InputError, match="folder"):
        save_events(stream(2, 0)[0], tmp_path / "no" / "file")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: encode(stream(3, 0)[0], "morse", 5), "'morse'"),
        (lambda: encode(stream(3, 0)[0], "rate", 1), "bits = 1"),
        (lambda: encode(stream(9, 0)[0], "rate", 3), "does not fit 3 bits"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
