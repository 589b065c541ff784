"""Damaged bundles whose manifest agrees with the damage: each is a sentence, or computes."""

from dataclasses import replace

import pytest
import torch

from calibration import DriftCompensation, InputRanges, Recipe, calibrate, inspect_bundle, load_bundle
from calibration.bundles import inspection
from calibration.bundles.files import MANIFEST, SEAL, seal
from crossbar import InputError, Tile, analog_layers, presets
from tests.calibration.bundles.damage import of_files
from tests.calibration.conftest import TinyNet


@pytest.fixture
def bundle(net, task, tmp_path):
    hardware, recipe = replace(presets.pcm(), tile=Tile(16, 10)), Recipe("plain", (InputRanges(), DriftCompensation()))
    calibrate(net, task, hardware, recipe, times=["1d"], chips=1, staircase=False, out=tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.filterwarnings(
    "ignore:.*is the model whole:UserWarning"
)  # weights of 0, before they are compared with the tiles
def test_damaged_bundles_are_refused_in_a_sentence(bundle):
    """500 of them; a bundle that is told of or loaded is of the same chip, and computes."""
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    good = {name: path.read_bytes() for name, path in files.items() if name not in (MANIFEST, SEAL)}
    x, refused, loaded = torch.ones(1, 24), [], 0
    for change in of_files(good, 500):
        for name, data in change.items():
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).unlink(missing_ok=True)
            if data is not None:
                (bundle / name).write_bytes(data)
        for name in (MANIFEST, SEAL):
            (bundle / name).unlink()
        seal(bundle)
        try:
            inspection.rows(inspect_bundle(bundle))
            found = load_bundle(bundle, model=TinyNet())
            found._own_step()
        except InputError as error:
            refused.append(str(error))
        else:
            loaded += 1
            assert {layer.seed for layer in analog_layers(found.model).values()} == {0}
            with torch.no_grad():
                assert found.model(x).isfinite().all()
        for name in change:
            (bundle / name).unlink(missing_ok=True)
            if name in good:
                (bundle / name).write_bytes(good[name])
    assert len(refused) + loaded == 500
    assert len(refused) > 300
    assert all("\n" not in line and len(line) < 3000 for line in refused)
