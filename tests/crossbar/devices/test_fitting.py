"""Known parameters are found again in simulated measurements, and files that are no readings are refused."""

import pytest
import torch

from crossbar import Hardware, InputError, devices, plots
from crossbar.devices.fitting import Readings, read_readings
from crossbar.tiles import ageing

TIMES = (1.0, 20.0, 120.0, 1e3, 1e4, 9e4, 6e5, 2.6e6)
HEADER = "target_us,seconds,conductance_us,device,read\n"


def simulated(device, targets, seed=0, times=TIMES):
    """Each of some targets (µS) read at each time, as many readings as both together."""
    targets = torch.as_tensor(targets, dtype=torch.float32)
    state = ageing.program(device, targets, (seed, "simulated"))
    reads = torch.stack([ageing.conductances(device, state, t, (seed, "simulated")) for t in times])
    seconds = torch.tensor(times, dtype=torch.float64).repeat_interleave(len(targets))
    places = torch.arange(len(targets)).repeat(len(times))
    return Readings(targets.double().repeat(len(times)), seconds, reads.double().flatten(), places)


def spread(g_max, count=250):
    return torch.linspace(0.1, 1.0, 10).repeat(count // 10) * g_max


def as_csv(readings):
    columns = (readings.target, readings.seconds, readings.conductance, readings.device)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return HEADER + "".join(f"{t:.6g},{s:g},{g:.6g},cell {d},0\n" for t, s, g, d in rows)


@pytest.mark.parametrize(
    ("device", "law"),
    [
        (devices.PCM(prog_noise_scale=0.5, drift_scale=1.3, read_noise_scale=0.3), "pcm"),
        (devices.Hermes(), "hermes"),
        (devices.ReRam(noise_scale=0.6), "reram"),
    ],
    ids=["pcm", "hermes", "reram"],
)
def test_known_parameters_are_within_the_intervals_of_2000_readings(device, law):
    readings = simulated(device, spread(device.g_max))
    found = devices.fit(readings, law, g_max=device.g_max, t_0=getattr(device, "t_0", 20.0))
    assert found.used == len(readings.target) == 2000
    for name, value, low, high in found.parameters:
        assert low < value < high
        assert low <= getattr(device, name) <= high, name
        assert (high - low) / value < 0.3
        assert getattr(found.device, name) == pytest.approx(value, rel=1e-5)


def test_coefficients_are_found_again(tmp_path):
    """Of 60 devices read at five times; each is within its interval."""
    fields = {"programming_constant": 0.4, "programming_linear": 1.0, "programming_quadratic": -0.6}
    device = devices.PowerLaw(exponent_mean=0.06, exponent_spread=0.015, read_noise=0.006, read_power=0.4, **fields)
    readings = simulated(device, spread(25.0, 60), times=(1.0, 120.0, 1e3, 9e4, 6e5))
    found = devices.fit(readings, "power_law", g_max=25.0)
    assert [each.name for each in found.parameters] == [
        *fields,
        "exponent_mean",
        "exponent_spread",
        "read_noise",
        "read_power",
    ]
    for name, value, low, high in found.parameters:
        assert low < value < high
        assert low <= getattr(device, name) <= high, name
        assert getattr(found.device, name) == pytest.approx(value, rel=1e-5)
    middle = torch.tensor([0.5])  # of the scale, where the three coefficients of programming tell most together
    expected = float(device.programming_deviation(middle))
    assert float(found.device.programming_deviation(middle)) == pytest.approx(expected, rel=0.2)
    Hardware(device=found.device).to_yaml(tmp_path / "device.yaml")
    assert Hardware.from_yaml(tmp_path / "device.yaml").device == found.device


def test_a_table_is_found_again():
    table = {"target_us": (0.0, 8.0, 20.0), "mean_us": (0.4, 8.5, 19.0), "std_us": (0.1, 0.5, 0.7)}
    drift = {"drift_mean": (0.05, 0.05, 0.07), "drift_std": (0.01, 0.01, 0.02)}
    device = devices.Measured(**table, **drift)
    found = devices.fit(simulated(device, [0.0, 8.0, 20.0] * 80), "measured")
    names = [each.name for each in found.parameters]
    assert names[:3] == ["mean_us at 0 µS", "std_us at 0 µS", "mean_us at 8 µS"]
    assert len(names) == 10
    inside = total = 0
    for name in (*table, *drift):
        expected, values = getattr(device, name), getattr(found.device, name)
        if name == "target_us":
            assert values == expected
            continue
        limits = {each.name: each for each in found.parameters}
        for target, known in zip(table["target_us"][1:], expected[1:], strict=True):
            each = limits[f"{name} at {target:g} µS"]
            inside, total = inside + (each.low <= known <= each.high), total + 1
    assert (inside >= 7, total) == (True, 8)  # of eight intervals of 95%


def test_a_file_gives_what_tensors_give_and_yaml_keeps_it(tmp_path):
    readings = simulated(devices.ReRam(noise_scale=1.4), spread(40.0, 40), times=(1.0, 86400.0))
    path = tmp_path / "readings.csv"
    path.write_text(as_csv(readings))
    found = devices.fit(path, "reram", g_max=40.0)
    assert found.parameters[0].value == pytest.approx(
        devices.fit(readings, "reram", g_max=40.0).parameters[0].value, 1e-4
    )
    Hardware(device=found.device).to_yaml(tmp_path / "device.yaml")
    assert Hardware.from_yaml(tmp_path / "device.yaml").device == found.device


def test_the_picture_has_a_colour_and_a_band_for_each_target():
    readings = simulated(devices.ReRam(), [8.0, 20.0, 40.0] * 10, times=(1.0, 86400.0))
    axes = plots.fitted(devices.fit(readings, "reram", g_max=40.0), cells=50)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["8 µS", "20 µS", "40 µS"]
    assert len([each for each in axes.collections if type(each).__name__ == "FillBetweenPolyCollection"]) == 3


LINE = "5,1,4.9,a,0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: give a header with target_us, seconds"),
        ("target_us,seconds,conductance_us,device\n", "has no column read: give target_us, seconds"),
        ("target_us,seconds,conductance_us,device,read,mood\n", "has a column 'mood' that is not known"),
        ("target_us,target_us,seconds,conductance_us,device,read\n", "has column target_us twice: give it once"),
        (HEADER, "has no readings: give a line for each"),
        (HEADER + LINE + "5,1,4.9,a\n", "line 3 has 4 cells: give 5, as the header"),
        (HEADER + "5,1,many,a,0\n", "line 2, column conductance_us = 'many' is not a number: give one"),
        (HEADER + "5,1,-1,a,0\n", "line 2, column conductance_us = -1.0 is not allowed"),
        (HEADER + "5,nan,1,a,0\n", "line 2, column seconds = nan is not allowed"),
        (HEADER + "5,1,4.9,,0\n", "line 2 has no device: give its name or number"),
        (HEADER + LINE + "6,2,4.9,a,0\n", "line 3: device 'a' has target 6 µS here and 5 µS before"),
        (HEADER + LINE + LINE, "line 3: read '0' of device 'a' at 1 s stands there twice: number the reads"),
        (HEADER + '5,1,"4.9,a,0\n', "is not CSV"),
        (HEADER + LINE, "there are readings of 1 devices: give 20 or more"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "readings.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        devices.fit(path, "pcm")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_readings_cannot_tell_is_refused():
    pcm = devices.PCM()
    with pytest.raises(InputError, match="law 'nor' is unknown: choose one of pcm, hermes, power_law, reram, measured"):
        devices.fit(simulated(pcm, spread(25.0, 50)), "nor")
    with pytest.raises(InputError, match="every device was read at one time alone"):
        devices.fit(simulated(pcm, spread(25.0, 50), times=(60.0,)), "pcm")
    with pytest.raises(InputError, match="a target is 25 µS, above g_max = 20"):
        devices.fit(simulated(pcm, spread(25.0, 50)), "pcm", g_max=20.0)
    with pytest.raises(InputError, match=r"targets of 1\.25 µS and more: give 20 or more"):
        devices.fit(simulated(pcm, [0.5] * 30 + [25.0]), "pcm")
    with pytest.raises(InputError, match="begin with the empty cell, 0 µS"):
        devices.fit(simulated(pcm, [5.0, 25.0] * 20), "measured")


def test_readings_of_a_file(tmp_path):
    path = tmp_path / "readings.csv"
    path.write_text("read,device,conductance_us,seconds,target_us\n\n0,b,4.5,60,5\n1,b,4.7,60,5\n0,a,9.5,60,10\n")
    found = read_readings(path)
    assert found.target.tolist() == [5.0, 5.0, 10.0]
    assert found.conductance.tolist() == [4.5, 4.7, 9.5]
    assert found.device.tolist() == [0, 0, 1]
