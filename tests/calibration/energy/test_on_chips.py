"""A model on chips: what feeds what, where it stands, and how long a token takes."""

import io

import pytest
import torch

from attention import Memory, Protected, attach, parse
from calibration.energy import DECODE, chip_plots, energy
from calibration.energy.results import tables
from calibration.placement.layout import event_time, flow_of
from crossbar import InputError, Ledger, convert, presets
from crossbar.costs.chips import Chip
from crossbar.costs.schedule import RESOURCES
from tests.calibration.command import assert_one_sentence, run
from tests.calibration.energy.test_study import HEAD_DIM, HEADS, LAYERS, PATTERNS, N, Words, language_model

SIZE = HEADS * HEAD_DIM


@pytest.fixture(scope="module")
def study():
    return energy(language_model(), Words(), "pcm", PATTERNS, recipe=None, batch=2)


def flow(model):
    convert(model, presets.ideal(), tied_heads=True)
    attach(model, "dense")
    ids = torch.arange(12)[None]
    with Ledger(model) as ledger, torch.no_grad():
        model(input_ids=ids)
    return {(edge.source, edge.target): edge.bytes for edge in flow_of(model, ledger, {"input_ids": ids})}


def test_what_feeds_what_in_a_llama():
    found = flow(language_model())
    first, second = "model.layers.0.", "model.layers.1."
    numbers = {
        ("model.embed_tokens", f"{first}input_layernorm"): SIZE,
        **{(f"{first}input_layernorm", f"{first}self_attn.{name}_proj"): SIZE for name in "qkv"},
        **{(f"{first}self_attn.{name}_proj", f"{first}self_attn"): SIZE for name in "qkv"},
        (f"{first}self_attn", f"{first}self_attn.o_proj"): SIZE,
        (f"{first}self_attn.o_proj", f"{first}post_attention_layernorm"): SIZE,
        ("model.embed_tokens", f"{first}post_attention_layernorm"): SIZE,  # the residual
        **{(f"{first}post_attention_layernorm", f"{first}mlp.{name}_proj"): SIZE for name in ("gate", "up")},
        (f"{first}mlp.gate_proj", f"{first}mlp.act_fn"): 48,
        (f"{first}mlp.act_fn", f"{first}mlp.down_proj"): 48,
        (f"{first}mlp.up_proj", f"{first}mlp.down_proj"): 48,
        (f"{first}mlp.down_proj", f"{second}input_layernorm"): SIZE,
        (f"{first}post_attention_layernorm", f"{second}input_layernorm"): SIZE,  # the sum made there goes on
        ("model.norm", "lm_head"): SIZE,
    }
    for edge, count in numbers.items():
        assert found[edge] == 2 * count, edge
    assert {target for source, target in found if source == "lm_head"} == set()
    assert len([edge for edge in found if edge[1].startswith(first)]) == 15


def test_what_feeds_what_where_projections_are_fused_or_outside():
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40, "hidden_size": 32}
    gpt = flow(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval())
    assert gpt["transformer.h.0.attn.c_attn", "transformer.h.0.attn"] == 2 * 96
    assert gpt["transformer.h.0.attn", "transformer.h.0.attn.c_proj"] == 2 * 96
    assert ("transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj") not in gpt
    bert = flow(BertModel(BertConfig(**sizes, intermediate_size=48)).eval())
    attends = "encoder.layer.0.attention.self"
    for name in ("query", "key", "value"):
        assert bert[f"{attends}.{name}", attends] == 2 * 32
    assert bert[attends, "encoder.layer.0.attention.output.dense"] == 2 * 32


def test_tiles_of_layers_and_of_keys_and_values(study):
    (plan, _) = (arm.plan for arm in study.arms)
    tiles = {block.name: block.tiles for block in plan.blocks}
    assert tiles["lm_head"] == 1
    assert tiles["model.layers.0.self_attn"] == 2 * HEADS  # 25 tokens in one tile of keys and one of values
    assert tiles["model.norm"] == 0
    assert plan.tiles == LAYERS * (7 + 2 * HEADS) + 1
    assert plan.chips == 1
    assert study.area(study.arms[0]).to_dict()["by_part"]["tile"] == pytest.approx(1024 * 0.634)


def test_a_token_s_way_by_hand(study):
    """Reads one after another on the longest way: v, two of attention, o, gate, down in each layer, and the head."""
    time = study.arms[0].work[1].time
    waited = time.waited()
    assert waited["word lines"] == pytest.approx((6 * LAYERS + 1) * 130)
    assert waited["read-out"] == pytest.approx((6 * LAYERS + 1) * 2.94)
    row = 2 * SIZE
    assert waited["DRAM"] == pytest.approx(100 + row * 0.00390625)  # of the embedding
    pairs = HEADS * (N + 1)
    softmax = (2 * pairs + HEADS * HEAD_DIM) * 1 + (pairs + HEADS) * 5  # conversions and pairs; exponentials
    (own,) = {
        stage.spent[RESOURCES.index("digital units")] for stage in time.stages if stage.name.endswith("self_attn")
    }
    assert own == pytest.approx(softmax / 256)
    assert time.latency == pytest.approx(sum(waited.values()))


def test_rates_and_areas_are_in_table_and_json(study):
    prefill, decode = (str(tables(study)[k].caption) for k in range(2))
    assert "without an area" not in decode
    assert "without a time" not in decode
    assert "mesh: tiles as measured" in prefill
    rows = study.to_dict()["rows"]
    assert set(rows[0]["time"]["schedules"]) == {"layer_by_layer", "pipelined"}
    assert rows[1]["phase"] == DECODE
    batch = rows[1]["time"]["schedules"]["decode"]
    assert batch["ns"] == pytest.approx(rows[1]["time"]["latency_ns"] / 2)
    assert rows[1]["area"]["mm2"] == study.area(study.arms[0]).mm2
    assert study.to_dict()["floor_plans"]["dense"]["tiles"] == study.arms[0].plan.tiles
    cells = [cell for column in tables(study)[1].columns for cell in column.cells]
    assert {"decode, batch 2", "tokens a second", "limited by", "mm²"} <= set(cells)


def test_what_moves_between_cores_is_priced(study):
    for arm in study.arms:
        hops = sum(moved.byte_hops for moved in arm.plan.traffic)
        assert hops > 0
        for work in arm.work:
            (line,) = [line for line in study.report(arm, work).lines if line.layer == "(network)"]
            assert (line.counter, line.component) == ("hop_bytes", "network")
            assert line.pj == pytest.approx(hops * work.tokens * 20.7 / 32)


def test_static_power_flows_as_long_as_the_work_takes(study):
    held = energy(language_model(), Words(), "pcm", ["dense"], recipe=None, book="truenorth + isaac + horowitz")
    work = held.arms[0].work[1]
    static = held.report(held.arms[0], work).by_component()["static"].pj
    assert static == pytest.approx(0.064 * work.time.latency * 1e-9 * 1e12)


def test_machines_give_attention_the_time_of_their_events():
    """TrueNorth: a tick of 1 ms for the scores of a query and one for its values."""
    window = parse("window(4)")
    assert event_time("truenorth", window, 0, 50) == pytest.approx(2e6)
    assert event_time("ideal", window, 0, 50) == 0
    sparse, dense = (event_time("loihi1", parse(text), 0, 64) for text in ("window(4)", "dense"))
    assert 2 * 113 < sparse < dense  # a barrier after each step
    found = energy(language_model(), Words(), "ideal", ["dense"], recipe=None, machine="truenorth")
    stages = {stage.name: stage for stage in found.arms[0].work[1].time.stages}
    assert stages["model.layers.0.self_attn"].spent[0] == pytest.approx(2e6)


def test_rows_that_choose_take_time_and_stand_on_tiles():
    """Decode: a coarse pulse and the ramp before the rows that open are read, where these are read in digital too."""
    pattern = f"screened({N + 1}, bits=3)"  # all rows open, so that the ramp runs to its end
    found = energy(language_model(), Words(), "pcm", ["dense", pattern], recipe=None)
    every, chosen = found.arms
    assert found.area(every).missing == {}
    assert found.area(chosen).missing == {"comparator": LAYERS * HEADS * 256}
    assert f"without an area, in no sum: comparator ({LAYERS * HEADS * 256:,})" in str(tables(found)[1].caption)
    before, after = (arm.work[1].time.waited() for arm in (every, chosen))
    assert after["word lines"] - before["word lines"] == pytest.approx(LAYERS * 130)
    assert after["comparators"] == LAYERS * 8  # steps of a ramp of 3 bits, a nanosecond each
    assert chosen.plan.tiles == every.plan.tiles
    digital = Memory(presets.pcm(), capacity=64, protected=Protected(sinks=1, recent=64))
    buffered = energy(language_model(), Words(), "pcm", [pattern], memory=digital, recipe=None).arms[0]
    assert buffered.plan.tiles == every.plan.tiles
    assert buffered.work[0].ledger.totals()["attended_pairs"] == 0
    assert buffered.work[0].time.waited()["comparators"] > 0
    assert buffered.work[1].time.waited()["comparators"] == after["comparators"]


def test_pictures_show_the_plan_and_the_way(study):
    drawing = chip_plots.floor(study)
    widths = [bar.get_width() for bar in drawing.axes[0].patches if bar.get_fill()]
    assert sum(widths) == pytest.approx(0.9 * study.arms[0].plan.tiles / 16)
    picture = chip_plots.gantt(study)
    assert len(picture.axes) == 2 * len(PATTERNS)
    ends = [bar.get_x() + bar.get_width() for bar in picture.axes[0].patches]
    assert max(ends) == pytest.approx(study.arms[0].work[1].time.latency / 1000)
    for figure in (drawing, picture):
        figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--chip-book=gold"], ["'gold'", "mesh"]),
        (["--placer=random"], ["'random'", "balanced"]),
        (["--batch=0"], ["batch = 0"]),
        (["--machine=loihi3"], ["'loihi3'", "loihi2"]),
        (["--floor=no/where.png"], ["folder 'no'"]),
        (["--gantt=p.gif"], ["'p.gif'"]),
    ],
)
def test_mistakes_are_one_sentence_before_anything_loads(capsys, options, words):
    assert_one_sentence(*run(capsys, "energy", *options), *words)


def test_a_chip_and_a_placer_of_ones_own():
    chip = Chip("mine", Chip.get("mesh").parts, tiles=4, width=2, height=2)
    found = energy(language_model(), Words(), "ideal", ["dense"], recipe=None, chip=chip, placer="balanced")
    assert found.arms[0].plan.chips == 2
    assert found.setup["on"] == "mine"
    with pytest.raises(InputError, match="'up' is unknown"):
        energy(language_model(), Words(), "ideal", ["dense"], placer="up")
