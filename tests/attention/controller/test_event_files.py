"""Event files, damaged: refused in one sentence, or a stream that can be timed (issue 18)."""

import pytest
import torch
from safetensors.torch import save_file

from attention import Controller, Dense, Events, Placement
from attention.controller import platforms
from attention.controller.event_files import load_events, save_events
from crossbar import InputError
from tests.mutations import of_bytes


@pytest.fixture
def events():
    return Controller(platforms.loihi1()).events(Dense().causal().rows(5), Placement.sequential(5, 2))


def test_damaged_files_are_refused_or_can_be_timed(events, tmp_path):
    save_events(events, tmp_path / "good")
    read, damaged_path = 0, tmp_path / "damaged"
    for damaged in of_bytes((tmp_path / "good").read_bytes(), 500):
        damaged_path.write_bytes(damaged)
        try:
            found = load_events(damaged_path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - it need not raise
            continue
        read += 1
        timing = Controller(platforms.loihi1()).simulate(found)
        assert timing.injected == len(found.time)
    assert read > 10


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("tile", [2**31 - 1], "has events of tile 2147483647: write it again, with 0 to 4,194,303"),
        ("tile", [-1], "has events of tile -1"),
        ("line", [-5], "has events of line -5"),
        ("axis", [2], "has events of axis 2"),
        ("query", [-1], "has events of query -1"),
        ("time", [2**62], "has events of time 4611686018427387904"),
        ("time", [5, 4], "not in order of time"),
    ],
)
def test_numbers_that_no_stream_has_are_refused(events, tmp_path, field, values, words):
    one = events.where(torch.arange(len(values)))
    changed = one._replace(**{field: torch.tensor(values, dtype=getattr(one, field).dtype)})
    save_events(changed, tmp_path / "file")
    with pytest.raises(InputError, match=words):
        load_events(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile": torch.zeros(3)}, r"has tile F32 \[3\]"),
        ({"tile": torch.zeros(4, dtype=torch.int32)}, r"has tile I32 \[4\] where time is \[3\]"),
        ({"time": torch.zeros(1, 3, dtype=torch.int64)}, r"has time I64 \[1, 3\]"),
        ({"more": torch.zeros(3)}, "has axis, line, more, payload, query, tile, time"),
        ({"query": None}, "has axis, line, payload, tile, time: write it again"),
    ],
)
def test_other_tensors_are_refused(events, tmp_path, change, words):
    tensors = {**events.where(torch.arange(3))._asdict(), **change}
    path = tmp_path / "file"
    save_file({n: x for n, x in tensors.items() if x is not None}, path, metadata={"schema": "ohmformer events 1"})
    with pytest.raises(InputError, match=words):
        load_events(path)


def test_a_tile_far_out_is_refused_before_anything_is_kept_for_each(events):
    far = Events(*events)._replace(tile=events.tile + 2**30)
    with pytest.raises(InputError, match=r"an event is on tile 1073741826: number tiles from 0 to 4194303"):
        Controller(platforms.loihi1()).simulate(far)
