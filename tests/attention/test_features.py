"""Whatever reads analog cells for attention refuses a feature of hardware that it does not honour."""

import dataclasses
import re

import pytest
import torch

from attention import (
    AnalogMemory,
    LearnedStrengths,
    LocalWindow,
    Memory,
    Router,
    gated_attention,
    parse,
    place_strengths,
)
from attention.kernel import token_rows
from attention.learned import strength_tiles
from attention.learned.router import place_centroids
from crossbar import Converter, Faults, Hardware, InputError, Tile, Wire, presets
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES
from tests.crossbar.toys import Heated

N, H, D = 12, 2, 8
WINDOW = LocalWindow(5).causal()


def tensors():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, H, N, D, generator=generator) for _ in range(3)]


def rows(hardware):
    gated_attention(*tensors(), WINDOW, hardware=hardware)


def memory(hardware):
    AnalogMemory(Memory(hardware, capacity=8))


def strengths(hardware):
    LearnedStrengths(H, N, WINDOW).place(hardware)


def mixed(hardware):
    place_strengths(torch.nn.ModuleList([LearnedStrengths(H, N, WINDOW, content_free=True)]), hardware)


def router(hardware):
    Router(parse("routing(4, 8)"), H, D).place(hardware)


def routers(hardware):
    place_centroids(torch.nn.ModuleList([Router(parse("routing(4, 8)"), H, D)]), hardware)


READERS = {
    rows: "keys and values",
    memory: "keys and values that are appended",
    strengths: "strengths read one by one",
    mixed: "strengths",
    router: "analog layers",
    routers: "analog layers",
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("base", [presets.ideal(), presets.pcm(), Hardware()], ids=["ideal", "pcm", "default"])
def test_a_feature_that_nobody_named_is_refused(reader, base):
    parts = {field.name: getattr(base, field.name) for field in dataclasses.fields(Hardware)}
    reader(Heated(**parts))
    sentence = f"hardware field heat = 2.5 is not supported for {READERS[reader]}: give 0"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        reader(Heated(**parts, heat=2.5))


@pytest.mark.parametrize(
    ("reader", "parts", "sentence"),
    [
        (rows, {"faults": Faults()}, r"faults = Faults\(.*\) is not supported for keys and values: give None"),
        (rows, {"tile": Tile(encoding="offset")}, r"tile\.encoding = 'offset' .*: give differential or balanced"),
        (rows, {"dac": Converter(range="max")}, r"dac\.range = 'max' .*: give static or per_token"),
        (rows, {"dac": Converter(coding="rate")}, r"dac\.coding = 'rate' .*: give pwm"),
        (rows, {"adc": Converter(bits=1)}, r"adc\.bits = 1 .*: give 2 or more"),
        (rows, {"adc": Converter(gain_std=0.1)}, r"adc\.gain_std = 0\.1 .*: give 0"),
        (memory, {"tile": Tile(slices=2)}, r"tile\.slices = 2 .*: give 1"),
        (
            strengths,
            {"dac": Converter(coding="bit_serial")},
            r"dac\.coding = 'bit_serial' .* strengths read one by one: give pwm",
        ),
        (mixed, {"faults": Faults()}, r"faults = Faults\(.*\) is not supported for strengths: give None"),
    ],
    ids=[
        "faults",
        "encoding",
        "range",
        "coding",
        "bits",
        "gain",
        "slices",
        "coding of strengths",
        "faults of strengths",
    ],
)
def test_what_readers_lack_is_refused_with_what_they_have(reader, parts, sentence):
    with pytest.raises(InputError, match=f"^hardware field {sentence}$"):
        reader(dataclasses.replace(presets.pcm(), **parts))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_all_readers_have_wires(reader):
    reader(dataclasses.replace(presets.ideal(), wire=Wire(drive="both", sense="top", layout="interleaved")))


def test_readers_name_features_that_there_are():
    known = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES
    assert known > token_rows.HONOURED
    assert known > strength_tiles.HONOURED
