"""TrueNorth's core against a transcription in whole numbers, its published powers, and fitted strengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.neuromorphic.loihi import loihi_weights
from attention.neuromorphic.truenorth import LEAST, MOST, Cores, fit_strengths
from crossbar import InputError, Ledger, price


def random_cores(seed, cores=1, axons=12, neurons=9, big=False, subtract=False):
    draw = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=draw)

    limit = 2**18 if big else 40
    return Cores(
        synapses=whole(0, 1, cores, axons, neurons).bool(),
        types=whole(0, 3, cores, axons),
        strengths=whole(-255, 255, cores, neurons, 4),
        leak=whole(-limit, limit, cores, neurons),
        threshold=whole(1, 4 * limit if not big else MOST, cores, neurons),
        reset=whole(-limit, limit, cores, neurons),
        subtract=subtract,
    )


def transcription(cores, spikes):
    """The equation with Python's whole numbers, one core, neuron and axon after another."""
    synapses, types, strengths = cores.synapses.tolist(), cores.types.tolist(), cores.strengths.tolist()
    leak, threshold, reset = cores.leak.tolist(), cores.threshold.tolist(), cores.reset.tolist()
    potentials = [[0] * len(row) for row in leak]
    trace, events = [], 0
    for tick in spikes.tolist():
        fired = []
        for c, row in enumerate(potentials):
            fired.append([])
            for j in range(len(row)):
                v = row[j] - leak[c][j]
                for i, spike in enumerate(tick[c]):
                    if spike and synapses[c][i][j]:
                        v += strengths[c][j][types[c][i]]
                        events += 1
                v = min(max(v, -524288), 524287)
                fires = v >= threshold[c][j]
                if fires:
                    v = v - threshold[c][j] if cores.subtract else reset[c][j]
                row[j] = v
                fired[c].append(fires)
        trace.append(([list(row) for row in potentials], fired))
    return trace, events


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_core_is_bit_exact_on_random_programs(seed, big, subtract):
    cores = random_cores(seed, cores=2, big=big, subtract=subtract)
    spikes = torch.rand(15, 2, 12, generator=torch.Generator().manual_seed(seed)) < 0.4
    expected, events = transcription(cores, spikes)
    potential = cores.start()
    with Ledger() as ledger:
        for tick, (potentials, fired) in zip(spikes, expected, strict=True):
            potential, spiked = cores.step(potential, tick)
            assert potential.tolist() == potentials
            assert spiked.tolist() == fired
    counts = ledger.to_dict()["truenorth"]
    assert counts["synaptic_events"] == events
    assert counts["neuron_updates"] == 15 * 18
    assert counts["spikes"] == sum(sum(map(sum, fired)) for _, fired in expected)
    assert counts["barriers"] == 15


def test_a_whole_core_of_256_by_256_is_bit_exact():
    cores = random_cores(3, axons=256, neurons=256)
    spikes = torch.rand(2, 1, 256, generator=torch.Generator().manual_seed(0)) < 0.5
    expected, _ = transcription(cores, spikes)
    potential = cores.start()
    for tick, (potentials, fired) in zip(spikes, expected, strict=True):
        potential, spiked = cores.step(potential, tick)
        assert (potential.tolist(), spiked.tolist()) == (potentials, fired)


def test_potentials_stay_at_their_bounds():
    one = torch.ones(1, 1, dtype=torch.int64)
    cores = Cores(one.bool()[None], 0 * one, torch.full((1, 1, 4), 255), -MOST * one, MOST * one, 0 * one)
    potential, fired = cores.step(one * 100, one.bool())
    assert (potential.item(), fired.item()) == (0, True)
    falling = Cores(one.bool()[None], 0 * one, torch.full((1, 1, 4), -255), MOST * one, MOST * one, 0 * one)
    assert falling.step(one * -100, one.bool())[0].item() == LEAST


@pytest.mark.parametrize(("hertz", "milliwatts"), [(11.58, 68), (20.07, 71), (95.93, 94)])
def test_8_the_published_chip_powers_from_simulated_events(hertz, milliwatts):
    """2^20 neurons at a mean rate, 128 synapses a spike: 8 of the 4,096 cores are simulated for 0.4 s."""
    cores, ticks, share = 8, 400, 4096 // 8
    draw = torch.Generator().manual_seed(1)
    # Every axon meets 128 neurons. A type adds 8 or takes 8, so that synapses shake potentials without a drift; the
    # leak drives each neuron to its threshold once in 1000 / hertz ticks on average.
    order = torch.rand(cores, 256, 256, generator=draw).argsort(2)
    drive = 64
    net = Cores(
        synapses=order < 128,
        types=torch.arange(256).remainder(2).expand(cores, 256).clone(),
        strengths=torch.tensor([8, -8, 0, 0]).expand(cores, 256, 4).clone(),
        leak=torch.full((cores, 256), -drive),
        threshold=torch.full((cores, 256), round(drive * 1000 / hertz)),
        reset=torch.zeros(cores, 256, dtype=torch.int64),
        subtract=True,
    )
    potential = (torch.rand(cores, 256, generator=draw) * net.threshold).long()
    spikes = torch.zeros(cores, 256, dtype=torch.bool)
    with Ledger() as ledger:
        for _ in range(ticks):
            # A neuron's one target: an axon of another core, dealt anew each tick by a shift.
            potential, fired = net.step(potential, spikes)
            spikes = fired.roll(1, 0)
    counts, seconds = ledger.to_dict()["truenorth"], ticks * 1e-3
    assert counts["spikes"] / (cores * 256 * seconds) == pytest.approx(hertz, rel=0.02)
    assert counts["synaptic_events"] == pytest.approx(128 * counts["spikes"], rel=0.02)
    report = price(ledger, "truenorth", seconds=seconds)
    parts = report.by_component()
    watts = (share * parts["synapses"].pj + parts["static"].pj) * 1e-12 / seconds
    assert watts * 1e3 == pytest.approx(milliwatts, rel=0.02)


# Strengths


def test_weights_that_a_core_can_hold_are_fitted_exactly():
    draw = torch.Generator().manual_seed(2)
    types = torch.randint(4, (40,), generator=draw)
    levels = torch.randn(20, 4, generator=draw)
    used = torch.rand(40, 20, generator=draw) < 0.5
    one_type = fit_strengths(used * levels[:, :1].T)
    assert one_type.error < 1e-12
    free = fit_strengths((used * levels.T[types])[torch.unique(types, return_inverse=True)[1].argsort()])
    assert free.error < 0.25


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_fit_reports_its_own_error_and_no_change_of_a_bit_helps(seed):
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(10, 6, generator=draw, dtype=torch.float64)
    fit = fit_strengths(w)
    rest = (w - fit.weights).square()
    assert float(rest.sum() / w.square().sum()) == pytest.approx(fit.error)
    flipped = (w - ~fit.synapses * fit.strengths.T[fit.types]).square()
    assert (rest <= flipped + 1e-9).all()
    assert fit.error < 1
    assert fit.types.min() >= 0
    assert fit.types.max() <= 3


def test_four_axons_a_token_buy_free_choice():
    draw = torch.Generator().manual_seed(4)
    w = torch.randn(64, 20, generator=draw, dtype=torch.float64)
    one, four = fit_strengths(w), fit_strengths(w, axons_a_token=4)
    assert four.types.tolist() == [0, 1, 2, 3] * 64
    sums = four.weights.view(64, 4, 20).sum(1)  # a token's four axons spike together
    assert float((w - sums).square().sum() / w.square().sum()) == pytest.approx(four.error)
    assert four.error < 0.01 < 0.1 < one.error
    # What four strengths can add up to is found again.
    levels = torch.randn(20, 4, generator=draw, dtype=torch.float64)
    held = (torch.randint(2, (64, 20, 4), generator=draw) * levels).sum(2)
    assert fit_strengths(held, axons_a_token=4).error < 0.01


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_loihi_weights_are_the_nearest_of_their_bits(seed, bits, signed):
    w = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    stored = loihi_weights(w, bits, signed=signed)
    sign = signed and bits > 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if sign else (0, 2**bits - 1)
    levels = torch.arange(low, high + 1).double() * stored.unit
    nearest = levels[(w[:, None] - levels).abs().argmin(1)]
    torch.testing.assert_close((w - stored.weights).abs(), (w - nearest).abs())
    assert stored.mantissa.min() >= low
    assert stored.mantissa.max() <= high
    assert stored.error == pytest.approx(float((w - stored.weights).square().sum() / w.square().sum()))


def test_loihi_shares_the_exponent_that_leaves_the_least_error():
    w = torch.tensor([3.0, -80.0, 500.0])
    stored = loihi_weights(w, 9, unit=1.0)
    assert stored.exponent == 1
    assert stored.weights.tolist() == [4.0, -80.0, 500.0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: fit_strengths(torch.ones(257, 3)), r"weights \[257, 3\]"),
        (lambda: fit_strengths(torch.ones(65, 3), axons_a_token=4), r"up to 64 and 256"),
        (lambda: fit_strengths(torch.ones(5, 3), axons_a_token=2), "axons_a_token = 2"),
        (lambda: fit_strengths(torch.full((2, 2), torch.nan)), "not finite"),
        (lambda: loihi_weights(torch.ones(2), 10), "bits = 10"),
        (lambda: loihi_weights(torch.ones(2), unit=0.0), "unit 0.0"),
        (lambda: with_field(types=torch.full((1, 12), 4)), "types from 4 to 4"),
        (lambda: with_field(strengths=torch.full((1, 9, 4), 256)), "strengths from 256"),
        (lambda: with_field(leak=torch.zeros(9, dtype=torch.int64)), "leak"),
        (lambda: with_field(synapses=torch.zeros(1, 300, 9, dtype=torch.bool)), "300 axons"),
        (lambda: with_field(synapses=torch.zeros(12, 9)), "synapses torch.float32"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


def with_field(**fields):
    return Cores(**{**random_cores(0).__dict__, **fields})
