"""aihwkit's inference configurations as hardware: what is taken over, what is named, and the same outputs."""

import dataclasses
import math
import warnings
from enum import Enum

import pytest
import torch
from torch import nn

from crossbar import AnalogLinear, CellNoise, Converter, Hardware, InputError, Tile, presets, program
from crossbar.devices import PCM, Ideal
from crossbar.devices.aihwkit import AihwkitDevice
from crossbar.devices.hermes import Hermes
from crossbar.rpu_config import NotHonouredWarning
from tests.peers import module_needs_aihwkit

module_needs_aihwkit()
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.converter.conductance import DualPairConductanceConverter, SinglePairConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel, ReRamWan2022NoiseModel
from aihwkit.nn import AnalogLinear as PeerLinear
from aihwkit.simulator.configs import (
    BoundManagementType,
    FloatingPointRPUConfig,
    InferenceRPUConfig,
    NoiseManagementType,
    QuantizedTorchInferenceRPUConfig,
    SingleRPUConfig,
    TorchInferenceRPUConfig,
    TorchInferenceRPUConfigIRDropT,
    WeightModifierType,
    WeightNoiseType,
    WeightRemapType,
)
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import AnalogMVType
from aihwkit.simulator.presets.inference import FloatingPointPreset, StandardHWATrainingPreset

ALWAYS = (
    "= ABS_MAX (of a token's whole vector and not of each tile's part)",
    "(tiles are filled up: a last one may be narrow where aihwkit splits evenly)",
)
"""What is named wherever it is used, since it matters to layers larger than a tile alone."""
COMPENSATION = "drift_compensation = GlobalDriftCompensation (calibrate with DriftCompensation(per='tile'))"


def plain(kind=TorchInferenceRPUConfig, **forward):
    """A configuration that is honoured in full."""
    config = kind()
    config.drift_compensation = None
    config.mapping.weight_scaling_omega = 1.0
    config.forward.bound_management = BoundManagementType.NONE
    for name, value in forward.items():
        assert hasattr(config.forward, name)
        setattr(config.forward, name, value)
    return config


def taken(config):
    """Hardware, and the fields that were named as not honoured, but for `ALWAYS`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hardware = presets.from_rpu_config(config)
    assert len(caught) <= 1
    if not caught:
        return hardware, []
    assert caught[0].category is NotHonouredWarning
    assert caught[0].filename == __file__
    start, _, fields = str(caught[0].message).partition(": ")
    assert start == f"not honoured of this {type(config).__name__}"
    return hardware, [field for field in fields.split(", ") if not field.endswith(ALWAYS)]


# What is taken over


@pytest.mark.parametrize("kind", [InferenceRPUConfig, TorchInferenceRPUConfig, QuantizedTorchInferenceRPUConfig])
def test_defaults_of_aihwkit(kind):
    assert taken(plain(kind)) == (
        Hardware(PCM(), Tile(512, 512, "tile"), Converter(7, "per_token"), Converter(9, full_scale=12.0), 0.06),
        [],
    )


def test_standard_preset():
    hardware, missed = taken(StandardHWATrainingPreset())
    assert hardware == Hardware(PCM(), Tile(512, 256, "tile_column"), Converter(8, full_scale=3.0), Converter(8), 0.04)
    assert missed == [
        "mapping.max_output_size = 0 (256 used)",
        "mapping.learn_out_scaling = True",
        "mapping.out_scaling_columnwise = True",
        "forward.w_noise = 0.0175",
        "forward.w_noise_type = PCM_READ",
        "forward.ir_drop = 1.0",
        COMPENSATION,
        "clip.fixed_value = 1.0",
        "clip.type = FIXED_VALUE",
    ]


def test_perfect_preset():
    hardware, missed = taken(FloatingPointPreset())
    assert hardware == Hardware(PCM(), Tile(256, 256, "tile"), dac=None, adc=None, output_noise=0.0)
    assert missed == [
        "mapping.max_input_size = 0 (256 used)",
        "mapping.max_output_size = 0 (256 used)",
        COMPENSATION,
    ]


@pytest.mark.parametrize("steps", [6, 62, 126, 254, 510, 65534])
@pytest.mark.parametrize("inverse", [False, True])
def test_bits_from_steps(steps, inverse):
    resolution = 1 / steps if inverse else float(steps)
    hardware, missed = taken(plain(inp_res=resolution, out_res=resolution))
    assert not missed
    assert 2 * hardware.dac.levels == 2 * hardware.adc.levels == steps


def test_steps_that_no_bits_give_are_named():
    hardware, missed = taken(plain(inp_res=256.0, out_res=-1.0))
    assert (hardware.dac.bits, hardware.adc.bits) == (8, 16)
    assert missed == ["forward.inp_res = 256.0 (8 bits used)", "forward.out_res = -1.0 (16 bits used)"]


@pytest.mark.parametrize(
    ("fields", "dac", "named"),
    [
        ({"noise_management": NoiseManagementType.NONE}, Converter(7, full_scale=1.0), []),
        ({"noise_management": NoiseManagementType.NONE, "inp_bound": 2.0}, Converter(7, full_scale=2.0), []),
        ({"noise_management": NoiseManagementType.CONSTANT, "nm_thres": 5.0}, Converter(7, full_scale=5.0), []),
        ({"noise_management": NoiseManagementType.CONSTANT}, Converter(7, full_scale=1.0), []),
        ({"noise_management": NoiseManagementType.ABS_MAX}, Converter(7, "per_token"), []),
        (
            {"noise_management": NoiseManagementType.ABS_MAX, "nm_thres": 5.0, "inp_bound": 0.5},
            Converter(7, "per_token"),
            ["forward.nm_thres = 5.0", "forward.inp_bound = 0.5"],
        ),
        (
            {"noise_management": NoiseManagementType.AVERAGE_ABS_MAX},
            Converter(7, "per_token"),
            ["forward.noise_management = AVERAGE_ABS_MAX (ABS_MAX of a token's whole vector used)"],
        ),
        ({"noise_management": NoiseManagementType.NONE, "inp_bound": 0.0, "inp_res": -1.0}, None, []),
        (
            {"noise_management": NoiseManagementType.NONE, "inp_bound": 0.0},
            None,
            [f"forward.inp_res = {1 / 126} (no DAC used)"],
        ),
    ],
)
def test_input_ranges(fields, dac, named):
    hardware, missed = taken(plain(**fields))
    assert hardware.dac == dac
    assert missed == named


def test_learnt_input_ranges_start_at_their_first_value():
    config = plain(noise_management=NoiseManagementType.CONSTANT, nm_thres=1.0)
    config.pre_post.input_range.enable, config.pre_post.input_range.init_value = True, 2.5
    config.pre_post.input_range.manage_output_clipping = True
    hardware, missed = taken(config)
    assert hardware.dac == Converter(7, full_scale=2.5)
    assert missed == ["pre_post.input_range.manage_output_clipping = True"]
    config.forward.inp_bound = 2.0
    assert taken(config)[1][0] == "forward.inp_bound = 2.0 (1 used)"
    config.forward.noise_management = NoiseManagementType.ABS_MAX
    assert "pre_post.input_range.enable = True" in taken(config)[1]


def test_output_bounds():
    assert taken(plain(out_bound=0.0, out_res=-1.0, out_noise=-1.0))[0].adc is None
    _, missed = taken(plain(out_bound=0.0))
    assert missed == [f"forward.out_res = {1 / 510} (no ADC used)"]


def test_tiles():
    config = plain()
    config.mapping.max_input_size, config.mapping.max_output_size = 100, 200
    config.mapping.weight_scaling_columnwise = True
    hardware, missed = taken(config)
    assert hardware.tile == Tile(100, 200, "tile_column")
    assert not missed


@pytest.mark.parametrize(("remap", "columnwise"), [("CHANNELWISE_SYMMETRIC", True), ("LAYERWISE_SYMMETRIC", False)])
def test_remapping_to_the_largest_weight_is_what_mapping_does(remap, columnwise):
    config = plain()
    config.remap.type, config.mapping.weight_scaling_columnwise = WeightRemapType[remap], columnwise
    assert not taken(config)[1]
    config.mapping.weight_scaling_columnwise = not columnwise
    assert taken(config)[1] == [f"remap.type = {remap}"]


# Devices

LIFTED = SinglePairConductanceConverter(g_max=25.0, g_min=1.0)


@pytest.mark.parametrize(
    ("model", "device"),
    [
        (
            PCMLikeNoiseModel(g_max=10.0, t_0=30.0, t_read=1e-6, prog_noise_scale=0.5, drift_scale=2.0),
            PCM(g_max=10.0, t_0=30.0, t_read=1e-6, prog_noise_scale=0.5, drift_scale=2.0),
        ),
        (PCMLikeNoiseModel(read_noise_scale=0.0), PCM(read_noise_scale=0.0)),
        (HermesNoiseModel(), Hermes()),
        (HermesNoiseModel(num_devices=1, t_0=100.0), Hermes(g_max=10.35, t_0=100.0, devices=1)),
        (HermesNoiseModel(g_max=15.0), Hermes(g_max=15.0)),
    ],
)
def test_native_devices_where_the_statistics_are_the_same(model, device):
    config = plain()
    config.noise_model = model
    hardware, missed = taken(config)
    assert hardware.device == device
    assert not missed


@pytest.mark.parametrize(
    "model",
    [
        PCMLikeNoiseModel(prog_coeff=[0.2, 1.0]),
        PCMLikeNoiseModel(g_converter=LIFTED),
        HermesNoiseModel(prog_coeff=[0.2, 1.0]),
        StateIndependentNoiseModel(),
        type("Own", (PCMLikeNoiseModel,), {})(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_models_are_wrapped(model):
    config = plain()
    config.noise_model = model
    hardware, missed = taken(config)
    assert hardware.device == AihwkitDevice(model)
    assert not missed


def test_reference_of_another_conductance_is_wrapped():
    config = plain()
    config.noise_model.prog_coeff_g_max_reference = 20.0
    assert isinstance(taken(config)[0].device, AihwkitDevice)


@pytest.mark.parametrize(
    "model",
    [PCMLikeNoiseModel(g_converter=DualPairConductanceConverter([1.0, 3.0])), ReRamCMONoiseModel()],
    ids=lambda model: type(model).__name__,
)
def test_converters_of_several_pairs_or_one_device_are_named(model):
    config = plain()
    config.noise_model = model
    hardware, missed = taken(config)
    assert hardware.device == AihwkitDevice(model)
    assert missed == [f"noise_model.g_converter = {type(model.g_converter).__name__} (one pair used)"]


# What is named


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("forward.w_noise", 0.01, "0.01"),
        ("forward.w_noise_type", WeightNoiseType.ADDITIVE_CONSTANT, "ADDITIVE_CONSTANT"),
        ("forward.ir_drop", 0.5, "0.5"),
        ("forward.out_noise_std", 0.3, "0.3"),
        ("forward.mv_type", AnalogMVType.BIT_WISE, "BIT_WISE"),
        ("forward.inp_noise", 0.1, "0.1"),
        ("forward.inp_sto_round", True, "True"),
        ("forward.bound_management", BoundManagementType.ITERATIVE, "ITERATIVE"),
        ("forward.out_nonlinearity", 0.1, "0.1"),
        ("forward.r_series", 0.1, "0.1"),
        ("mapping.digital_bias", False, "False"),
        ("mapping.weight_scaling_omega", 0.0, "0.0 (1 used)"),
        ("modifier.type", WeightModifierType.ADD_NORMAL, "ADD_NORMAL"),
        ("modifier.pdrop", 0.1, "0.1"),
        ("drift_compensation", GlobalDriftCompensation(), COMPENSATION.partition(" = ")[2]),
        ("backward.is_perfect", False, "False"),
    ],
)
def test_fields_without_a_counterpart_are_named(path, value, named):
    config = plain()
    *sections, field = path.split(".")
    part = config
    for section in sections:
        part = getattr(part, section)
    setattr(part, field, value)
    _, missed = taken(config)
    assert f"{path} = {named}" in missed
    assert len(missed) == 1 or path == "backward.is_perfect"


def another(value):
    """A value of the same type that asks for something else."""
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value and member.name != "NONE")
    return not value if isinstance(value, bool) else value + 3


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(IOParameters)])
def test_no_field_of_the_forward_pass_is_lost(field):
    assert taken(plain(**{field: another(getattr(plain().forward, field))})) != taken(plain())


def test_quantised_and_wired_configurations():
    config = plain(TorchInferenceRPUConfigIRDropT)
    assert taken(config)[1] == ["forward.ir_drop = 1.0"]
    config.forward.ir_drop = 0.0
    assert not taken(config)[1]
    quantised = plain(QuantizedTorchInferenceRPUConfig)
    quantised.pre_post.periph_quant.n_bits = 8
    assert taken(quantised)[1] == ["pre_post.periph_quant.n_bits = 8"]


def test_a_configuration_is_left_as_it_is():
    config, untouched = StandardHWATrainingPreset(), StandardHWATrainingPreset()
    taken(config)
    assert str(config) == str(untouched)


def test_what_matters_to_layers_larger_than_a_tile_is_always_named():
    with pytest.warns(NotHonouredWarning) as caught:
        presets.from_rpu_config(plain())
    assert str(caught[0].message) == (
        f"not honoured of this TorchInferenceRPUConfig: mapping.max_input_size = 512 {ALWAYS[1]}, "
        f"forward.noise_management {ALWAYS[0]}"
    )
    static = plain(noise_management=NoiseManagementType.NONE)
    static.mapping.max_input_size = 0
    with pytest.warns(NotHonouredWarning, match="mapping.max_input_size = 0") as caught:
        presets.from_rpu_config(static)
    assert "tiles are filled up" not in str(caught[0].message)
    assert "ABS_MAX" not in str(caught[0].message)


def test_a_fit_that_the_constructor_put_to_another_conductance_is_named():
    config = plain()
    config.noise_model = ReRamWan2022NoiseModel()
    used = "40.0 used: what the default fit was made at and aihwkit's constructor loses"
    assert taken(config)[1] == [f"noise_model.coeff_g_max_reference = 25.0 ({used})"]
    config.noise_model = ReRamWan2022NoiseModel(g_max=40.0)
    assert not taken(config)[1]


# The same outputs


@pytest.mark.parametrize("omega", [1.0, 0.6])
def test_white_noise_of_weights_is_that_of_aihwkit(omega):
    """Both give w_noise / omega times the column's largest weight and the input's length, in deviation."""
    config = plain(
        InferenceRPUConfig, out_noise=0.0, out_bound=0.0, out_res=-1.0, inp_res=-1.0, w_noise=0.02,
        w_noise_type=WeightNoiseType.ADDITIVE_CONSTANT,
    )  # fmt: skip
    config.mapping.weight_scaling_omega, config.mapping.weight_scaling_columnwise = omega, True
    config.noise_model = PCMLikeNoiseModel(prog_noise_scale=0.0, drift_scale=0.0, read_noise_scale=0.0)
    hardware, missed = taken(config)
    assert hardware.read_noise == CellNoise(constant=0.02 / omega * 25.0 / math.sqrt(2))
    assert not [field for field in missed if "w_noise" in field]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        digital, x = nn.Linear(40, 30, bias=False), torch.randn(2000, 40)
        peer = PeerLinear(40, 30, bias=False, rpu_config=config).eval()
    peer.set_weights(digital.weight.detach())
    layer = AnalogLinear.from_digital(digital, dataclasses.replace(hardware, device=Ideal(), dac=None, adc=None))
    program(layer, 0)
    with torch.no_grad():
        expected = 0.02 / omega * digital.weight.abs().amax(1) * x.norm(dim=1, keepdim=True)
        for found in (peer(x), layer.eval()(x)):
            # 60,000 numbers: a standard error of 0.003 of their deviation
            assert float(((found - digital(x)) / expected).std()) == pytest.approx(1.0, abs=0.015)


def test_the_difference_at_512_inputs_is_the_range_of_each_tile():
    """Two halves of a layer, each with its own abs-max, give aihwkit's error; the whole layer a larger one."""
    config = plain(out_noise=0.0, inp_res=1 / 14, out_res=1 / 30)
    config.mapping.max_input_size, config.mapping.weight_scaling_columnwise = 256, True
    hardware, _ = taken(config)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weight, x = torch.randn(64, 512) * 0.05, torch.randn(300, 512)
        peer = PeerLinear(512, 64, bias=False, rpu_config=config).eval()
    peer.set_weights(weight)

    def analog(weight, x):
        digital = nn.Linear(weight.shape[1], 64, bias=False)
        digital.weight.data.copy_(weight)
        return AnalogLinear.from_digital(digital, hardware).eval()(x)

    def error(found):
        return float((found - x @ weight.T).norm() / (x @ weight.T).norm())

    with torch.no_grad():
        theirs = error(peer(x))
        halves = error(sum(analog(weight[:, part], x[:, part]) for part in (slice(256), slice(256, 512))))
        whole = error(analog(weight, x))
    assert halves == pytest.approx(theirs, rel=2e-3)
    assert 1.04 < whole / theirs < 1.1


@pytest.mark.parametrize(
    ("fields", "omega", "learnt"),
    [
        ({}, 1.0, None),
        ({"inp_res": 30.0, "out_res": 62.0, "out_bound": 3.0}, 1.0, None),
        ({"inp_res": 30.0, "out_res": 62.0, "out_bound": 3.0}, 0.6, None),
        ({"noise_management": NoiseManagementType.NONE, "inp_bound": 0.7, "out_bound": 3.0}, 0.6, None),
        ({"noise_management": NoiseManagementType.CONSTANT, "nm_thres": 1.5, "out_bound": 3.0}, 1.0, None),
        ({"noise_management": NoiseManagementType.NONE, "out_bound": 3.0}, 0.6, 1.7),
        ({"noise_management": NoiseManagementType.NONE, "inp_bound": 0.0, "inp_res": -1.0, "out_bound": 3.0}, 0.6, 1.0),
        (
            {"noise_management": NoiseManagementType.NONE, "inp_bound": 0.0, "inp_res": -1.0, "out_bound": 3.0},
            0.6,
            None,
        ),
    ],
)
@pytest.mark.parametrize("columnwise", [False, True])
def test_same_outputs_as_aihwkit(fields, omega, learnt, columnwise):
    config = plain(out_noise=0.0, **fields)
    config.mapping.weight_scaling_omega, config.mapping.weight_scaling_columnwise = omega, columnwise
    if learnt is not None:
        config.pre_post.input_range.enable, config.pre_post.input_range.init_value = True, learnt
        config.pre_post.input_range.init_from_data = 0
    hardware, _ = taken(config)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        digital, x = nn.Linear(40, 30), torch.randn(200, 40)
        peer = PeerLinear(40, 30, rpu_config=config).eval()
    peer.set_weights(digital.weight.detach(), digital.bias.detach())
    with torch.no_grad():
        theirs, ours = peer(x), AnalogLinear.from_digital(digital, hardware).eval()(x)
    # Roundings fall on the other side where a value lies within a float32 rounding of half a step.
    assert (ours - theirs).abs().gt(1e-4).double().mean() < 0.01
    assert (ours - digital(x)).abs().gt(1e-3).double().mean() > 0.1


# Refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            SingleRPUConfig(),
            "a SingleRPUConfig is not an inference configuration: give an instance of aihwkit's Inference",
        ),
        (FloatingPointRPUConfig(), "a FloatingPointRPUConfig is not an inference configuration"),
        (InferenceRPUConfig, "the class InferenceRPUConfig is not an inference configuration: give an instance"),
        ({"forward": {}}, "a dict is not an inference configuration"),
        (None, "a NoneType is not an inference configuration"),
    ],
    ids=str,
)
def test_refuses_what_is_not_an_inference_configuration(given, message):
    with pytest.raises(InputError, match=message):
        presets.from_rpu_config(given)


@pytest.mark.parametrize(
    ("model", "message"),
    [(BaseNoiseModel(), "BaseNoiseModel does not define apply_programming_noise"), (None, "noise_model = None is not")],
)
def test_refuses_models_that_cannot_be_used(model, message):
    config = plain()
    config.noise_model = model
    with pytest.raises(InputError, match=message):
        presets.from_rpu_config(config)
