"""Time series: weekly CO2 at Mauna Loa and yearly sunspots, forecast by a small transformer, beside the season before.

The score is 1 - error / error of the seasonal naive forecast (what stood there a season ago), mean absolute errors.
"""

import torch
from domain import Arrays, Encoder, options, show, train
from torch import Tensor
from torch.nn.functional import l1_loss

SERIES = {
    "weekly CO2": {"season": 52, "past": 156, "ahead": 26, "patch": 13, "steps": 300},
    "sunspots": {"season": 11, "past": 44, "ahead": 11, "patch": 4, "steps": 60},
}


def values(name: str) -> Tensor:
    """A series, with its few missing weeks filled in by a line between their neighbours."""
    from statsmodels.datasets import co2, sunspots

    if name == "sunspots":
        return torch.tensor(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float), dtype=torch.float32)
    return torch.tensor(co2.load_pandas().data["co2"].interpolate().to_numpy(float), dtype=torch.float32)


def task(name: str, season: int, past: int, ahead: int, patch: int, steps: int) -> tuple[Arrays, float]:
    """Windows of the series as patches, in units of their own spread; the last fifth of the years is scored."""
    series = values(name)
    windows = series.unfold(0, past + ahead, 1)
    before, after = windows[:, :past], windows[:, past:]
    level, spread = before[:, -1:], before.std(1, keepdim=True)
    inputs = ((before - level) / spread).unflatten(1, (-1, patch))
    answers = torch.stack([(after - level) / spread, spread.expand_as(after)], -1)
    naive = (windows[:, past - season : past - season + ahead] - level) / spread
    cut = int(0.8 * len(windows))
    first, held = cut + ahead, min(100, cut // 5)  # no value that is scored was an answer in training
    parts = {
        "training": (inputs[: cut - held], answers[: cut - held]),
        "calibration": (inputs[cut - held : cut], answers[cut - held : cut]),
        "evaluation": (inputs[first:], answers[first:]),
    }
    error = float(distance(naive[first:], answers[first:]))
    return Arrays(name, "skill", parts, lambda found, wanted: 1 - float(distance(found, wanted)) / error), error


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error in the series' own unit."""
    return ((found - wanted[..., 0]).abs() * wanted[..., 1]).mean()


def main() -> None:
    chosen = options(__doc__)
    for name, shape in SERIES.items():
        torch.manual_seed(0)
        scored, error = task(name, **shape)
        model = Encoder(shape["past"] // shape["patch"], shape["patch"], shape["ahead"], "window(4) | global(0)")
        train(
            model, scored, lambda found, wanted: l1_loss(found, wanted[..., 0]), 2 if chosen.short else shape["steps"]
        )
        print(f"{name}: mean absolute error of the seasonal naive forecast {error:.3g}")
        show(model, scored, chosen, times=("1h", "1d", "30d", "1y"), beside={"seasonal naive": 0.0})


if __name__ == "__main__":
    main()
