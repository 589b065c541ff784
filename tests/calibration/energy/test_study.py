"""Where the picojoules go: counts of a real forward pass, priced, under several patterns."""

import io
import json
from itertools import pairwise

import pytest
import torch

from attention import Memory, Protected, parse
from calibration.energy import DECODE, PREFILL, default_book, energy
from calibration.energy.plots import breakdown, pareto
from calibration.energy.results import tables
from crossbar import InputError, PriceBook, analog_layers, presets
from crossbar.costs.prices import DEFAULT
from tests.attention.hf_models import CAUSAL, HEAD_DIM, HEADS, LAYERS
from tests.calibration.command import assert_one_sentence, run

PATTERNS = ("dense", "window(6) | sinks(2)")
N, WORDS = 24, 40


def language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HEADS * HEAD_DIM, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD_DIM, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


class Words:
    """Two sequences of random words; the metric is the mean log-probability of the next."""

    name, primary = "words", "score"

    def batches(self, split):
        generator = torch.Generator().manual_seed({"evaluation": 1, "calibration": 2}[split])
        return [{"input_ids": ids} for ids in torch.randint(WORDS, (2, 1, N), generator=generator)]

    def metrics(self, model):
        with torch.no_grad():
            scores = [model(**batch).logits.log_softmax(-1).amax(-1).mean() for batch in self.batches("evaluation")]
        return {"score": float(torch.stack(scores).mean())}


@pytest.fixture(scope="module")
def study():
    return energy(language_model(), Words(), "ideal", PATTERNS, recipe=None)


def test_counts_of_both_phases_by_hand(study):
    assert CAUSAL["llama"]
    for arm, text in zip(study.arms, PATTERNS, strict=True):
        prefill, decode = arm.work
        assert (prefill.phase, prefill.tokens, decode.phase, decode.tokens) == (PREFILL, 2 * N, DECODE, 1)
        pattern = parse(text).causal()
        pairs = 2 * len(pattern.rows(N).indices)
        after = len(pattern.rows(1, offset=N).indices)  # one token after a whole sequence
        assert prefill.ledger.totals()["attended_pairs"] == LAYERS * HEADS * pairs
        assert decode.ledger.totals()["attended_pairs"] == LAYERS * HEADS * after
        size = HEADS * HEAD_DIM
        weights = LAYERS * (4 * size * size + 3 * size * 48) + WORDS * size
        assert prefill.macs == 2 * N * weights + 2 * HEAD_DIM * LAYERS * HEADS * pairs
        assert decode.macs == weights + 2 * HEAD_DIM * LAYERS * HEADS * after
        assert decode.numbers == weights + 2 * size * LAYERS * after
        assert prefill.numbers == 2 * weights + 2 * size * LAYERS * 2 * N
    assert study.uncounted == {}


def test_of_experts_those_that_tokens_are_routed_to_are_counted():
    """Two of four experts a token: so many multiply-adds, on tiles as in digital, and the weights that were met."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=WORDS, hidden_size=HEADS * HEAD_DIM, intermediate_size=24, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD_DIM, max_position_embeddings=64,
        num_local_experts=4, num_experts_per_tok=2, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model, size = MixtralForCausalLM(config).eval(), HEADS * HEAD_DIM
    found = [
        energy(model, Words(), "ideal", ["dense"], recipe=None, exclude=exclude).arms[0].work
        for exclude in (None, "*experts*")
    ]
    dense, expert = LAYERS * 4 * size * size + WORDS * size, 3 * 24 * size
    for prefill, decode in found:
        pairs = 2 * LAYERS * HEADS * N * (N + 1) // 2
        assert prefill.macs == 2 * N * (dense + LAYERS * 2 * expert) + 2 * HEAD_DIM * pairs
        assert decode.macs == dense + LAYERS * 2 * expert + 2 * HEAD_DIM * LAYERS * HEADS * (N + 1)
        assert decode.numbers == dense + LAYERS * 2 * expert + 2 * size * LAYERS * (N + 1)
    (on_tiles, _), (in_digital, _) = found
    driven = sum(n for name, row in on_tiles.ledger.by_layer.items() if "experts.tiles" in name
                 for counter, n in row.items() if counter.name == "cell_macs")  # fmt: skip
    assert driven == 2 * N * LAYERS * 2 * expert
    digital = {name: row for name, row in in_digital.ledger.to_dict().items() if name.endswith("experts")}
    assert sum(row["digital_macs"] for row in digital.values()) == 2 * N * LAYERS * 2 * expert


def test_a_tied_head_is_on_tiles_unless_it_is_left_in_digital(study):
    digital = energy(language_model(), Words(), "ideal", PATTERNS, recipe=None, tied_heads=False)
    found = study
    assert found.setup["tied_heads"] == {"lm_head": "model.embed_tokens"}
    assert found.setup["look_ups"] == ["model.embed_tokens"]
    assert digital.setup["tied_heads"] == {}
    note = "lm_head is on tiles with the weights of model.embed_tokens"
    assert note in str(tables(found)[0].caption)
    assert note not in str(tables(digital)[0].caption)
    for before, after in zip(digital.arms, found.arms, strict=True):
        for plain, tiles in zip(before.work, after.work, strict=True):
            assert (tiles.macs, tiles.numbers) == (plain.macs, plain.numbers)
            head, digital = tiles.ledger.to_dict()["lm_head"], plain.ledger.to_dict()["lm_head"]
            assert head["cell_macs"] == digital["digital_macs"] == tiles.tokens * WORDS * HEADS * HEAD_DIM
            assert "dram_bytes" in digital
            assert "dram_bytes" not in head
            assert found.part_of("lm_head", tiles) == "linear"
            looked_up = tiles.ledger.to_dict()["model.embed_tokens"]
            assert looked_up == plain.ledger.to_dict()["model.embed_tokens"]
            assert looked_up["dram_bytes"] == 2 * tiles.tokens * HEADS * HEAD_DIM  # 16 bits a number, a row a token
            read = [line for line in found.report(after, tiles).lines if line.layer == "model.embed_tokens"]
            assert {line.component: line.pj for line in read}["DRAM"] == pytest.approx(243.75 * looked_up["dram_bytes"])


def test_every_picojoule_has_a_part(study):
    for arm in study.arms:
        for work in arm.work:
            stack = study.by_part(arm, work)
            total = study.report(arm, work).total.pj
            assert sum(stack.values()) * work.tokens == pytest.approx(total)
            assert {part for part, _ in stack} == {"linear", "attention", "digital"}
    dense, sparse = (study.by_part(arm, arm.work[1]) for arm in study.arms)
    assert sparse[("attention", "digital logic")] < dense[("attention", "digital logic")]
    assert sparse[("linear", "ADC")] == dense[("linear", "ADC")]


def test_accuracy_is_that_of_the_same_runs(study):
    for arm in study.arms:
        assert arm.digital == pytest.approx(arm.analog, abs=0.02)  # ideal cells, 8-bit converters
    assert study.arms[0].digital != study.arms[1].digital
    again = energy(language_model(), Words(), "ideal", PATTERNS, recipe=None)
    assert again.to_dict() == study.to_dict()


def test_a_recipe_is_fitted_at_the_age_of_the_chip():
    bare, calibrated = (
        energy(language_model(), Words(), "pcm", ["dense"], recipe=recipe, age="30d") for recipe in (None, "fast")
    )
    (drifted,), (mended,) = bare.arms, calibrated.arms
    assert abs(mended.analog - mended.digital) < abs(drifted.analog - drifted.digital)
    assert bare.setup["age"] == 30 * 86400
    assert calibrated.setup["recipe"]["name"] == "fast"


def test_calibration_is_fitted_before_it_is_scored(monkeypatch):
    ages = []
    monkeypatch.setattr(Words, "metrics", lambda self, model: ages.append(age_of(model)) or {"score": 0.0})
    for recipe, seconds in (("fast", 3600 + 1800), (None, 3600)):
        found = energy(language_model(), Words(), "pcm", ["dense"], recipe=recipe, age="1h", wait="30min")
        assert ages[-1] == found.setup["age"] + found.setup["wait"] == seconds
    with pytest.raises(InputError, match="a wait of 0 s would score the very noise"):
        energy(language_model(), Words(), "pcm", ["dense"], wait=0.0)


def age_of(model):
    return next(iter(analog_layers(model).values())).seconds


def test_calibration_text_is_not_in_what_is_scored(monkeypatch):
    same = Words().batches("evaluation")
    monkeypatch.setattr(Words, "batches", lambda self, split: same)
    with pytest.raises(InputError, match="is in its evaluation data too"):
        energy(language_model(), Words(), "pcm", ["dense"])
    assert energy(language_model(), Words(), "pcm", ["dense"], recipe=None).arms


def test_pairs_of_protected_tokens_are_attentions_work():
    """All pairs are in a digital buffer; the work is that of the same attention elsewhere."""
    plain, held = (
        energy(language_model(), Words(), "ideal", PATTERNS[1:], recipe=None, memory=memory)
        for memory in ("reram", Memory(presets.reram(), protected=Protected(sinks=2, recent=6)))
    )
    for before, after in zip(plain.arms[0].work, held.arms[0].work, strict=True):
        assert after.ledger.totals()["digital_pairs"] == before.ledger.totals()["attended_pairs"] == after.ledger.pairs
        assert after.macs == before.macs
        parts = {name: held.part_of(name, after) for name in after.ledger.by_layer if "self_attn" in name}
        ours = {name: part for name, part in parts.items() if name.endswith(("self_attn", "protected"))}
        assert set(ours.values()) == {"attention"}
        assert len(ours) == 2 * LAYERS  # rows that are written, and the buffer that is read


def test_a_book_of_ones_own_prices_it():
    book = PriceBook.get("hermes")
    study = energy(language_model(), Words(), "ideal", ["dense"], recipe=None, book=book)
    report = study.report(study.arms[0], study.arms[0].work[0])
    assert report.by_component().keys() == {"tiles, all-in"}
    assert {"digital_macs", "dram_bytes", "sram_bytes", "special_functions"} <= report.unpriced.keys()


def test_tables_and_pictures_show_what_was_found(study):
    first, second = tables(study)
    assert [str(column.header) for column in first.columns[2:]] == [arm.pattern for arm in study.arms]
    assert "step" in str(second.title)
    assert "without a price, in no sum: column_activations" in str(first.caption)
    figure = breakdown(study)
    bars = figure.axes[0].containers
    drawn = sum(float(bar[0].get_width()) for bar in bars)
    arm = study.arms[0]
    assert drawn == pytest.approx(study.report(arm, arm.work[0]).total.pj / arm.work[0].tokens * 1e-6)
    picture = pareto(study)
    points = {float(line.get_ydata()[0]) for line in picture.axes[0].lines}
    assert {arm.analog for arm in study.arms} <= points
    assert "simulated: " in picture._supxlabel.get_text()
    for drawing in (figure, picture):
        drawing.savefig(io.BytesIO())  # places the ticks
        for axes in drawing.axes:
            ticks = [tick.label1 for tick in axes.xaxis.get_major_ticks() if tick.label1.get_text()]
            boxes = sorted((tick.get_window_extent() for tick in ticks), key=lambda box: box.x0)
            assert len(boxes) >= 2
            if not ticks[0].get_rotation():
                assert all(left.x1 + 4 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(("memory", "component"), [("reram", "writes"), ("gain_cell", "attention, all-in")])
def test_writes_of_analog_memory_are_counted_and_priced(memory, component):
    study = energy(language_model(), Words(), "ideal", PATTERNS, recipe=None, memory=memory)
    for arm in study.arms:
        for work, tokens in zip(arm.work, (2 * N, 1), strict=True):
            totals = work.ledger.totals()
            assert totals["row_writes"] == LAYERS * HEADS * 2 * tokens  # a row of K and one of V
            assert "row_writes" not in study.report(arm, work).unpriced
            assert study.by_part(arm, work)[("attention", component)] > 0
            if memory == "reram":
                pj = study.by_part(arm, work)[("attention", component)]
                assert pj == pytest.approx(0.6 * totals["write_pulses"] / tokens)
    dense, sparse = study.arms
    assert (dense.rows, sparse.rows) == (64, 8)  # positions of the model; the window and the sinks
    assert dense.analog != dense.digital
    assert "written again after so many tokens: 64 (dense), 8 (window(6) | sinks(2))" in str(tables(study)[0].caption)
    again = energy(language_model(), Words(), "ideal", PATTERNS, recipe=None, memory=memory)
    assert again.to_dict() == study.to_dict()


def test_writes_have_the_price_of_the_memory_s_cells():
    names = {kind: default_book(Memory(presets.get(kind))) for kind in ("reram", "pcm", "gain_cell")}
    assert names["pcm"] == "isaac + horowitz + nvsim_pcm"
    assert names["gain_cell"].startswith("gain_cell + ")
    assert names["reram"] == default_book(None) == DEFAULT


# The command


def test_the_command_writes_what_it_is_asked_for(capsys, tmp_path, monkeypatch):
    from calibration.commands import energy as command

    found = energy(language_model(), Words(), "ideal", ["dense"], recipe=None)
    monkeypatch.setattr(command, "study_of", lambda options: found)  # loading a model is tested elsewhere
    paths = {name: tmp_path / f"{name}.png" for name in ("plot", "pareto", "floor", "gantt")}
    options = [f"--{name}={path}" for name, path in paths.items()]
    code, out, _ = run(capsys, "energy", *options, f"--out={tmp_path / 'energy.json'}")
    assert code == 0
    assert "prefill" in out
    assert "decode" in out
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())
    written = json.loads((tmp_path / "energy.json").read_text())
    assert written == found.to_dict()
    assert {row["phase"] for row in written["rows"]} == {PREFILL, DECODE}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--book=gold"], ["'gold'", "isaac"]),
        (["--task=chess"], ["'chess'"]),
        (["--patterns=[windo(3)]"], ["windo"]),
        (["--plot=no/where.png"], ["folder 'no'"]),
        (["--pareto=p.gif"], ["'p.gif'"]),
        (["--memory=gold"], ["'gold'", "gain_cell"]),
        (["--memory-capacity=9"], ["--memory"]),
        (["--age=soon"], ["'soon'"]),
        (["--wait=0s"], ["wait of 0 s"]),
    ],
)
def test_mistakes_are_one_sentence_before_anything_loads(capsys, options, words):
    assert_one_sentence(*run(capsys, "energy", *options), *words)


def test_no_pattern_is_refused():
    with pytest.raises(InputError, match="no pattern"):
        energy(language_model(), Words(), "ideal", [])
