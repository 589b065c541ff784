"""Parameters of the shipped device laws from measurements of a user's own devices, with intervals.

Readings are a long table: one line for each reading of each device (`read_readings`). What is fitted are the fields of
a device of this package, so that the result is a description like any other:

- ``pcm`` and ``hermes``: ``prog_noise_scale``, ``drift_scale`` and ``read_noise_scale``, how much larger than the
  published ones the three effects are, by maximum likelihood. A device's programmed conductance and drift exponent are
  not seen, so its likelihood is an integral over both, by Gauss and Hermite's rule around their most likely values
  (adaptive quadrature; Pinheiro and Bates, J. Comput. Graph. Stat. 4, 12, 1995). Intervals are from Fisher's
  information. Readings of one device at one time are averaged, and devices with targets below a twentieth of g_max left
  out, of which programming clamps many at 0 µS.
- ``power_law``: the coefficients of `crossbar.devices.PowerLaw`, by the same likelihood: for devices with these laws
  whose numbers are others at each conductance than PCM's.
- ``reram``: ``noise_scale``, by maximum likelihood of each reading, 0 µS standing for all that is clamped there.
- ``measured``: a table (`crossbar.devices.Measured`), by moments: of the first reading, and of the slope of the
  logarithm over ``ln(1 + t / t_0)``, what fluctuation adds to its variance taken off.

The intervals of the last two are from drawing devices again (bootstrap), since readings of one device belong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossbar.devices.hermes import Hermes
from crossbar.devices.measured import Measured
from crossbar.devices.power_law import PCM, PowerLaw, PowerLawDrift
from crossbar.devices.protocol import Device
from crossbar.devices.reram import ReRam
from crossbar.errors import InputError, require_number, shown
from crossbar.storage.csv_tables import number, read_table

LAWS = ("pcm", "hermes", "power_law", "reram", "measured")
"""What can be fitted."""
COLUMNS = ("target_us", "seconds", "conductance_us", "device", "read")
"""Of a file of readings."""

_FIELDS = ("prog_noise_scale", "drift_scale", "read_noise_scale")
_FEWEST = 20  # devices that a fit takes
_LOWEST = 0.05  # of g_max: targets that a power law is fitted to
_NODES = 7  # of the quadrature, in each direction
_DRAWN = 200  # times that devices are drawn again
_NORMAL = 1.959964  # deviations that 95% of a normal distribution are within


@dataclass(frozen=True)
class Readings:
    """Measurements of devices that were each written once, one number for each reading.

    Attributes:
        target: what was aimed at, µS.
        seconds: since programming.
        conductance: what was read, µS.
        device: which device, whole numbers from 0.
    """

    target: Tensor
    seconds: Tensor
    conductance: Tensor
    device: Tensor

    def __post_init__(self) -> None:
        columns = (self.target, self.seconds, self.conductance, self.device)
        if any(column.shape != self.target.shape or column.dim() != 1 for column in columns):
            raise InputError(f"readings have columns {[list(c.shape) for c in columns]}: give four of one length, [n]")
        for name, column in zip(("target", "seconds", "conductance"), columns, strict=False):
            if not bool((column.isfinite() & (column >= 0)).all()):
                raise InputError(f"readings have a {name} that is not finite or below 0: leave it out")


class Parameter(NamedTuple):
    """A fitted number with the limits of its 95% interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """What was fitted.

    Attributes:
        device: of this package, with the fitted fields; ``crossbar.Hardware(device=fit.device).to_yaml(path)`` writes
            it.
        parameters: with their intervals.
        readings: that it was fitted to, all of them.
        used: how many of these counted.
    """

    device: Device
    parameters: tuple[Parameter, ...]
    readings: Readings
    used: int


def read_readings(path: str | Path) -> Readings:
    """Readings from a CSV file with a line for each, and a header that names the columns, in any order.

    ``target_us``: what the device was written to, µS, 0 to 1e5. ``seconds``: since programming, 0 to 1e12.
    ``conductance_us``: what was read, µS, 0 to 1e5. ``device``: a name or number, which has one target. ``read``: a
    name or number that tells readings of a device at one time apart. Empty lines are skipped. A file has at most 1 MiB,
    some 30,000 readings.

    Raises:
        InputError: for a missing file and for anything that is not such a table, with line and column.
    """
    name, lines = read_table("readings", path, COLUMNS)
    numbers: list[tuple[float, float, float, int]] = []
    names, targets, seen = dict[str, int](), dict[int, float](), set[tuple[int, float, str]]()
    for place, row in lines:
        target, seconds, read = (
            _number(place, column, row[column], most)
            for column, most in (("target_us", 1e5), ("seconds", 1e12), ("conductance_us", 1e5))
        )
        if not row["device"]:
            raise InputError(f"{place} has no device: give its name or number")
        device = names.setdefault(row["device"], len(names))
        if targets.setdefault(device, target) != target:
            raise InputError(
                f"{place}: device {row['device']!r} has target {target:g} µS here and {targets[device]:g} µS before: "
                "give a device that was written again another name"
            )
        if (device, seconds, row["read"]) in seen:
            raise InputError(
                f"{place}: read {row['read']!r} of device {row['device']!r} at {seconds:g} s stands there twice: "
                "number the reads of one time"
            )
        seen.add((device, seconds, row["read"]))
        numbers.append((target, seconds, read, device))
    if not numbers:
        raise InputError(f"{name} has no readings: give a line for each")
    table = torch.tensor(numbers, dtype=torch.float64, device="cpu")
    return Readings(table[:, 0], table[:, 1], table[:, 2], table[:, 3].long())


def fit(readings: Readings | str | Path, law: str, g_max: float | None = None, t_0: float | None = None) -> Fit:
    """The device whose law explains readings best.

    Args:
        readings: tensors, or the path of a CSV file (`read_readings`).
        law: one of `LAWS`.
        g_max: conductance of the largest weight, µS; the largest target unless given. Not for ``measured``.
        t_0: time of the first read after programming, s, from which ``pcm``, ``hermes``, ``power_law`` and ``measured``
            count drift; the device's own unless given.

    Raises:
        InputError: for an unknown law, a file that is no table of readings, and readings that do not tell the
            parameters.
    """
    if law not in LAWS:
        raise InputError(f"law {shown(law)} is unknown: choose one of {', '.join(LAWS)}")
    if not isinstance(readings, Readings):
        readings = read_readings(readings)
    count = len(readings.device.unique())
    if count < _FEWEST:
        raise InputError(f"there are readings of {count} devices: give {_FEWEST} or more")
    most = float(readings.target.max()) if g_max is None else g_max
    require_number("g_max", most, least=1e-3, most=1e5)
    if float(readings.target.max()) > most * (1 + 1e-6):
        raise InputError(
            f"a target is {float(readings.target.max()):g} µS, above g_max = {most:g}: give a larger g_max"
        )
    if law == "measured":
        return _measured(readings, Measured.t_0 if t_0 is None else t_0)
    if law == "reram":
        return _reram(readings, most)
    if law == "power_law":
        return _coefficients(readings, most, PowerLaw.t_0 if t_0 is None else t_0)
    kind = PCM if law == "pcm" else Hermes
    return _scales(readings, kind, most, kind.t_0 if t_0 is None else t_0)


def _scales(readings: Readings, kind: type[PCM] | type[Hermes], g_max: float, t_0: float) -> Fit:
    device = kind(g_max=g_max, t_0=t_0)
    data, used = _drifting(readings, g_max)
    from scipy.optimize import minimize

    def loss(logs: np.ndarray) -> float:
        return -_likelihood(device, data, *np.exp(np.clip(logs, -9.0, 6.0)))

    simplex = np.vstack([np.zeros(3), 0.4 * np.eye(3)])
    options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-3, "maxiter": 400}
    found = minimize(loss, np.zeros(3), method="Nelder-Mead", options=options)
    deviations = _deviations(loss, found.x)
    if not found.success or deviations is None or np.abs(found.x).max() > 5:
        raise _untold(len(data.target))
    values = np.exp(found.x)
    parameters = tuple(
        Parameter(name, float(value), float(value * np.exp(-_NORMAL * d)), float(value * np.exp(_NORMAL * d)))
        for name, value, d in zip(_FIELDS, values, deviations, strict=True)
    )
    fitted: PCM | Hermes = kind(
        g_max=g_max,
        t_0=t_0,
        prog_noise_scale=_rounded(values[0]),
        drift_scale=_rounded(values[1]),
        read_noise_scale=_rounded(values[2]),
    )
    return Fit(fitted, parameters, readings, used)


def _drifting(readings: Readings, g_max: float) -> tuple[_ByDevice, int]:
    """The readings that a power law is fitted to, by device, and how many they are."""
    data, used = _by_device(readings, readings.target >= _LOWEST * g_max)
    devices = len(data.target)
    if devices < _FEWEST:
        raise InputError(
            f"there are {devices} devices with targets of {_LOWEST * g_max:g} µS and more: give {_FEWEST} or more"
        )
    if int(data.there.sum(1).max()) < 2:
        raise InputError(
            "every device was read at one time alone: give readings at two times or more, such as 1m and 1d"
        )
    return data, used


def _untold(devices: int) -> InputError:
    return InputError(
        f"the readings of {devices} devices do not tell programming error, drift and fluctuation apart: give more "
        "devices, and more times for each"
    )


def _coefficients(readings: Readings, g_max: float, t_0: float) -> Fit:
    """`PowerLaw`'s own, from where moments of the readings say that they are."""
    data, used = _drifting(readings, g_max)
    slopes, variances = _slopes(data, t_0)
    seen = np.isfinite(slopes)
    mean = float(np.clip(np.median(slopes[seen]), 1e-3, 0.5))
    spread = math.sqrt(max(float(slopes[seen].var() - variances[seen].mean()), (0.05 * mean) ** 2))
    first = (data.conductance[:, 0] * (data.seconds[:, 0] / t_0 + 1) ** mean - data.target).numpy()
    error = max(float(np.sqrt(np.mean(first**2))), 1e-4 * g_max)
    # Numbers near 1 are searched: programming and slope as parts of these, deviations by their logarithms.
    units = {
        "programming_constant": error,
        "programming_linear": error,
        "programming_quadratic": error,
        "exponent_mean": mean,
        "exponent_spread": spread,
        "read_noise": 0.01,
        "read_power": 1.0,
    }
    logarithmic = np.array([name in ("exponent_mean", "exponent_spread", "read_noise") for name in units])
    sizes = np.array([*units.values()])

    def values_at(point: np.ndarray) -> np.ndarray:
        values: np.ndarray = sizes * np.where(logarithmic, np.exp(np.clip(point, -9.0, 6.0)), point)
        return values

    def device_at(point: np.ndarray) -> PowerLaw:
        fields: dict[str, Any] = dict(zip(units, values_at(point).tolist(), strict=True))
        capped = {name: min(fields[name], 1.0) for name in ("exponent_mean", "exponent_spread", "read_noise")}
        return PowerLaw(g_max=g_max, t_0=t_0, **{**fields, **capped})

    def loss(point: np.ndarray) -> float:
        return -_likelihood(device_at(point), data, 1.0, 1.0, 1.0)

    from scipy.optimize import minimize

    start = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3])
    bounds = [(-20.0, 20.0)] * 3 + [(-5.0, 5.0)] * 3 + [(-4.0, 4.0)]
    found = minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"eps": 1e-4, "ftol": 1e-10})
    deviations = _deviations(loss, found.x)
    if not np.isfinite(found.fun) or deviations is None:
        raise _untold(len(data.target))
    parameters = tuple(
        Parameter(name, *(float(values_at(found.x + side * _NORMAL * deviations)[place]) for side in (0, -1, 1)))
        for place, name in enumerate(units)
    )
    fields: dict[str, Any] = {each.name: _rounded(each.value) for each in parameters}
    return Fit(PowerLaw(g_max=g_max, t_0=t_0, **fields), parameters, readings, used)


class _ByDevice(NamedTuple):
    """Readings of D devices at up to K times each, ``[D, K]``; targets ``[D]``."""

    target: Tensor
    seconds: Tensor
    conductance: Tensor
    there: Tensor


def _by_device(readings: Readings, wanted: Tensor) -> tuple[_ByDevice, int]:
    """Readings in rows, those of one device and one time averaged, and how many there were."""
    rows: dict[int, dict[float, list[float]]] = {}
    targets: dict[int, float] = {}
    columns = (readings.device, readings.target, readings.seconds, readings.conductance)
    for device, target, seconds, read in zip(*(column[wanted].tolist() for column in columns), strict=True):
        targets[device] = target
        rows.setdefault(device, {}).setdefault(seconds, []).append(read)
    most = max((len(row) for row in rows.values()), default=0)
    shape = (len(rows), most)
    seconds, conductance = np.ones(shape), np.ones(shape)
    there = np.zeros(shape, dtype=bool)
    for place, row in enumerate(rows.values()):
        for column, (at, reads) in enumerate(sorted(row.items())):
            seconds[place, column], conductance[place, column] = at, np.mean(reads)
            there[place, column] = True
    target = torch.tensor([targets[device] for device in rows], dtype=torch.float64, device="cpu")
    return _ByDevice(target, *map(torch.from_numpy, (seconds, conductance, there))), int(wanted.sum())


def _likelihood(device: PowerLawDrift, data: _ByDevice, programming: float, drift: float, fluctuation: float) -> float:
    """Logarithm of the likelihood of readings at scales of the three effects."""
    decades = (data.seconds / device.t_0).log1p()
    growth = device.band(data.seconds) * fluctuation
    g = data.target / device.g_max
    error = device.programming_deviation(g) * programming
    mean, spread = device.exponent_moments(g)
    floor = 1e-3 * device.g_max

    def model(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means and deviations ``[..., D, K]``, programmed conductances and exponents' signs at ``[..., D, 2]``."""
        programmed = (data.target + error * z[..., 0]).clamp(min=floor)
        exponent = mean + spread * z[..., 1]
        read = programmed.unsqueeze(-1) * (-(exponent.abs() * drift).unsqueeze(-1) * decades).exp()
        deviation = device.read_amplitude(programmed / device.g_max).unsqueeze(-1) * read * growth
        return read, deviation.clamp(min=1e-9 * device.g_max), programmed, exponent.sign()

    z = torch.zeros(*data.target.shape, 2, dtype=torch.float64, device="cpu")
    unit = torch.eye(2, dtype=torch.float64, device="cpu")
    for _ in range(8):  # Gauss and Newton's steps to the most likely conductance and exponent
        read, deviation, programmed, sign = model(z)
        weights = data.there / deviation.square()
        slopes = torch.stack(
            ((error / programmed).unsqueeze(-1) * read, -(spread * drift * sign).unsqueeze(-1) * decades * read), -1
        )
        curvature = unit + torch.einsum("dki,dkj,dk->dij", slopes, slopes, weights)
        push = torch.einsum("dki,dk->di", slopes, weights * (data.conductance - read)) - z
        z = z + torch.linalg.solve(curvature, push).clamp(-2.0, 2.0)
    nodes, shares = map(torch.from_numpy, np.polynomial.hermite.hermgauss(_NODES))
    root = torch.linalg.cholesky(torch.linalg.inv(curvature))
    grid = torch.cartesian_prod(nodes, nodes)
    around = z + math.sqrt(2.0) * torch.einsum("dij,nj->ndi", root, grid)
    read, deviation, _, _ = model(around)
    each = -deviation.log() - ((data.conductance - read) / deviation).square() / 2
    logs = (each * data.there).sum(-1) - around.square().sum(-1) / 2
    logs += (grid.square().sum(1) + torch.cartesian_prod(shares, shares).prod(1).log()).unsqueeze(1)
    return float((logs.logsumexp(0) + root.diagonal(dim1=1, dim2=2).log().sum(1)).sum())


def _deviations(loss: Callable[[np.ndarray], float], at: np.ndarray, step: float = 0.03) -> np.ndarray | None:
    """Standard deviations of parameters by Fisher's information, the loss's curvature; None: it has no least."""
    size, shifts = len(at), np.eye(len(at)) * step
    curvature = np.empty((size, size))
    for i in range(size):
        for j in range(i + 1):
            corners = [loss(at + p * shifts[i] + q * shifts[j]) for p, q in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
            curvature[i, j] = curvature[j, i] = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * step**2)
    if not np.isfinite(curvature).all() or np.linalg.eigvalsh(curvature).min() <= 0:
        return None
    found: np.ndarray = np.sqrt(np.diag(np.linalg.inv(curvature)))
    return found


def _reram(readings: Readings, g_max: float) -> Fit:
    device = ReRam(g_max=g_max)
    sizes = torch.empty_like(readings.target)
    for seconds in readings.seconds.unique().tolist():
        at = readings.seconds == seconds
        sizes[at] = device.deviation(readings.target[at] / g_max, seconds)
    off = ((readings.conductance - readings.target) / sizes).numpy()
    clamped = (readings.conductance <= 0).numpy()
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    def scale(counts: np.ndarray) -> float:
        """The most likely scale of readings that count so often."""

        def loss(log: float) -> float:
            z = off * math.exp(-log)
            return -float((counts * np.where(clamped, norm.logcdf(z), -(z**2) / 2 - log)).sum())

        return math.exp(float(minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded").x))

    value = scale(np.ones(len(off)))
    low, high = _interval(readings, lambda counts: [scale(counts)])[0]
    parameter = Parameter("noise_scale", value, low, high)
    return Fit(ReRam(g_max=g_max, noise_scale=_rounded(value)), (parameter,), readings, len(off))


def _interval(readings: Readings, estimate: Callable[[np.ndarray], list[float]]) -> list[tuple[float, float]]:
    """95% intervals of estimates that take how often each reading counts, devices being drawn again."""
    generator, devices = np.random.default_rng(0), readings.device.numpy()
    count = int(devices.max()) + 1
    drawn = np.array(
        [
            estimate(np.bincount(generator.integers(count, size=count), minlength=count)[devices].astype(float))
            for _ in range(_DRAWN)
        ]
    )
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _measured(readings: Readings, t_0: float) -> Fit:
    data, used = _by_device(readings, torch.ones_like(readings.target, dtype=torch.bool))
    targets = sorted(set(data.target.tolist()))
    drifts = int(data.there.sum(1).max()) > 1
    generator, columns = np.random.default_rng(0), dict[str, list[float]]()
    parameters, last = list[Parameter](), (0.0, 0.0)
    for target in reversed(targets):
        own = data.target == target
        rows = _ByDevice(data.target[own], data.seconds[own], data.conductance[own], data.there[own])
        count = len(rows.target)
        if count < 3:
            raise InputError(f"there are {count} devices with a target of {target:g} µS: give 3 or more")
        slopes, variances = _slopes(rows, t_0) if drifts and target > 0 else (None, None)
        first = rows.conductance[:, 0].numpy()
        back = np.log1p(rows.seconds[:, 0].numpy() / t_0)

        def moments(chosen: np.ndarray, given: tuple[np.ndarray | None, ...], last: tuple[float, float]) -> list[float]:
            first, back, slopes, variances = given
            assert first is not None
            assert back is not None
            drift = last
            if slopes is not None and variances is not None:
                seen = chosen[np.isfinite(slopes[chosen])]
                if len(seen) > 1:
                    spread = max(slopes[seen].var(ddof=1) - variances[seen].mean(), 0.0)
                    drift = (float(slopes[seen].mean()), math.sqrt(spread))
            programmed = first[chosen] * np.exp(drift[0] * back[chosen])
            return [float(programmed.mean()), float(programmed.std(ddof=1)), *drift]

        given = (first, back, slopes, variances)
        found = moments(np.arange(count), given, last)
        drawn = [moments(generator.integers(count, size=count), given, last) for _ in range(_DRAWN)]
        last = (found[2], found[3])
        low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
        names = ("mean_us", "std_us", *(("drift_mean", "drift_std") if drifts else ()))
        for place, name in enumerate(names):
            columns.setdefault(name, []).insert(0, _rounded(found[place]))
        told = names if slopes is not None else names[:2]  # an empty cell is taken to drift like the next one above
        limits = zip(told, found, low.tolist(), high.tolist(), strict=False)
        parameters = [Parameter(f"{name} at {target:g} µS", *numbers) for name, *numbers in limits] + parameters
    table = {name: tuple(values) for name, values in columns.items()}
    return Fit(Measured(target_us=tuple(targets), **table, t_0=t_0), tuple(parameters), readings, used)


def _slopes(rows: _ByDevice, t_0: float) -> tuple[np.ndarray, np.ndarray]:
    """Drift exponent of each device, NaN where it cannot be told, and the variance that fluctuation gives it."""
    there = (rows.there & (rows.conductance > 0)).double()
    x, y = (rows.seconds / t_0).log1p(), rows.conductance.clamp(min=1e-12).log()
    count = there.sum(1)
    x = (x - ((x * there).sum(1) / count).unsqueeze(1)) * there
    y = (y - ((y * there).sum(1) / count).unsqueeze(1)) * there
    width = x.square().sum(1)
    slope = -(x * y).sum(1) / width
    left = ((y + slope.unsqueeze(1) * x) * there).square().sum()
    noise = left / (count - 2).clamp(min=0).sum().clamp(min=1)
    slope[(count < 2) | (width <= 0)] = torch.nan
    return slope.numpy(), (noise / width.clamp(min=1e-12)).numpy()


def _number(place: str, column: str, cell: str, most: float) -> float:
    value = number(place, column, cell)
    require_number(f"{place}, column {column}", value, most=most)
    return value


def _rounded(value: float) -> float:
    """Six digits, which are more than any measurement has."""
    return float(f"{value:.6g}")
