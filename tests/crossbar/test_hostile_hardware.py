"""Hardware files, damaged or with impossible numbers: refused in one sentence, or what they say, finite (issue 18)."""

import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from crossbar import Hardware, InputError, age, convert, program
from crossbar.storage.plain_values import load_yaml
from tests.mutations import of_bytes, of_values

EXAMPLE = Path(__file__).parents[2] / "docs/hardware.example.yaml"
RICH = {
    "device": {
        "kind": "measured",
        "target_us": [0, 10, 25],
        "mean_us": [0.1, 10, 24],
        "std_us": [0.1, 0.5, 1],
        "t_0": 5,
    },
    "tile": {"rows": 9, "cols": 5, "encoding": "balanced", "pairs": 2, "slices": 2, "slice_bits": 3, "scale": "layer"},
    "dac": {"bits": 4, "range": "max", "full_scale": 2.0, "coding": "rate", "gain_std": 0.1, "offset_std": 0.1},
    "adc": {"bits": 7, "range": "active_rows", "full_scale": 5.0, "gain_std": 0.1, "offset_std": 0.1},
    "output_noise": 0.1,
    "read_noise": {"constant": 0.1, "relative": 0.1, "form": "exact"},
    "verify": {"tolerance": 0.1, "rounds": 3, "read_std": 0.1},
    "faults": {"stuck_min": 0.1, "shorts": 0.1, "broken_rows": 0.1, "short_conductance": 100.0, "spare_cols": 2},
}
BOUNDS = {
    "dac.full_scale": (1e-6, 1e6),
    "dac.gain_std": (0, 10),
    "dac.offset_std": (0, 1e4),
    "adc.full_scale": (1e-6, 1e6),
    "adc.gain_std": (0, 10),
    "adc.offset_std": (0, 1e4),
    "output_noise": (0, 1e4),
    "read_noise.constant": (0, 1e3),
    "read_noise.relative": (0, 10),
    "verify.tolerance": (1e-9, 10),
    "verify.read_std": (0, 10),
    "faults.shorts": (0, 1),
    "faults.short_conductance": (1e-6, 1e6),
    "device.g_max": (1e-3, 1e5),
    "device.t_0": (1e-9, 1e9),
    "device.t_read": (1e-12, 1e6),
    "device.prog_noise_scale": (0, 1e3),
    "device.drift_scale": (0, 1e3),
    "device.read_noise_scale": (0, 1e3),
}
"""Of a number's field, as the classes say."""


def assert_finite(hardware, seconds=(3600.0,), inputs=(1.0,)):
    """A small layer on this hardware gives finite numbers."""
    layers = nn.Sequential(nn.Linear(12, 7))
    nn.init.normal_(layers[0].weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(layers[0].bias)
    convert(layers, hardware)
    program(layers, 0)
    x = torch.linspace(-1, 1, 24).view(2, 12)
    for time in seconds:
        age(layers, time)
        with torch.no_grad():
            assert all(layers(x * scale).isfinite().all() for scale in inputs)


def nested(field, value):
    for part in reversed(field.split(".")):
        value = {part: value}
    return value


def test_damaged_files_are_refused_or_compute():
    taken = 0
    for damaged in of_bytes(EXAMPLE.read_bytes(), 500):
        try:
            hardware = Hardware.from_dict(load_yaml("hardware", damaged.decode("utf-8", "replace")) or {})
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - it need not raise
            continue
        taken += 1
        assert Hardware.from_dict(hardware.to_dict()) == hardware
        if taken % 32 == 0:
            assert_finite(hardware)
    assert taken > 40


def test_damaged_values_are_refused_or_compute():
    taken = 0
    for damaged in of_values(RICH, 500):
        try:
            hardware = Hardware.from_dict(damaged)
        except InputError:
            continue
        taken += 1
        if taken % 8 == 0:
            assert_finite(hardware)
    assert taken > 40


@pytest.mark.parametrize("field", BOUNDS)
def test_numbers_have_bounds(field):
    least, most = BOUNDS[field]
    for value in (least, most):
        other = {"device": {"t_0": 1e9}} if field == "device.t_read" else {}
        given = nested(field, value)
        if "device" in given:
            given["device"] |= {"kind": "pcm"} | (other.get("device") or {})
            if field == "device.t_0":
                given["device"]["t_read"] = 1e-12
        Hardware.from_dict(given)
    for value in (
        least - 1e-9,
        most * 1.001,
        1e38,
        -1e38,
        10**400,
        math.nan,
        math.inf,
        -math.inf,
        1e-46 - (least == 0),
    ):
        given = nested(field, value)
        if "device" in given:
            given["device"]["kind"] = "pcm"
        with pytest.raises(InputError, match=f"give a finite number from {least:g} to"):
            Hardware.from_dict(given)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tile": {"rows": 8193}}, "rows = 8193 is not allowed: give a whole number from 1 to 8192"),
        ({"tile": {"cols": 10**400}}, "give a whole number from 1 to 8192"),
        ({"tile": {"pairs": 65}}, "pairs = 65 is not allowed: give a whole number from 1 to 64"),
        (
            {"tile": {"rows": 8192, "cols": 8192, "pairs": 2}},
            "give 134,217,728 places for pairs of cells: give at most",
        ),
        ({"verify": {"rounds": 10_001}}, "rounds = 10001 is not allowed: give a whole number from 1 to 10000"),
        ({"faults": {"spare_cols": 8193}}, "spare_cols = 8193 is not allowed"),
        ({"faults": {"seed": 2**63}}, "seed = 9223372036854775808 is not allowed"),
        ({"device": {"kind": "gain_cell", "levels": 65_537}}, "levels = 65537 is not allowed"),
        ({"device": {"kind": "hermes", "devices": True}}, "devices = True is not allowed: choose 1 or 2"),
        ({"device": {"kind": "hermes", "devices": []}}, r"devices = \[\] is not allowed: choose 1 or 2"),
        ({"device": {"kind": "reram_cmo", "acceptance": {}}}, "acceptance = {} is not allowed"),
        ({"device": "x" * 10_000}, "x…|is not allowed"),
        ({"tile": 10**5000}, "hardware.tile = a int too large to print is not allowed"),
    ],
)
def test_what_nobody_means_is_refused(values, words):
    with pytest.raises(InputError, match=words) as refused:
        Hardware.from_dict(values)
    assert len(str(refused.value)) < 500


def test_extremes_together_compute():
    """At any bounds of any fields at once outputs are finite, at once and after 30,000 years."""
    for case in range(40):
        draw = random.Random(case)
        values = {
            "device": {"kind": "pcm"},
            "tile": {"rows": draw.choice((1, 5, 16)), "encoding": draw.choice(("differential", "balanced", "offset"))},
            "dac": {"range": draw.choice(("static", "per_token", "max")), "bits": draw.choice((1, 2, 8, 16))},
            "adc": {"range": draw.choice(("static", "active_rows")), "bits": draw.choice((1, 8, 16))},
        }
        for field, bounds in BOUNDS.items():
            if draw.random() < 0.4:
                part, _, name = field.rpartition(".")
                (values.setdefault(part, {}) if part else values)[name] = draw.choice(bounds)
        try:
            hardware = Hardware.from_dict(values)
        except InputError as error:
            assert "t_read" in str(error)  # noqa: PT017 - it need not raise
            continue
        assert_finite(hardware, (0.0, 1e12), (0.0, 1.0, 1e4))
