"""A study of 100,000 cells: how long storing, the summary query and the report take, and the page to open it.

    python benchmarks/study_report.py

Opening is measured in headless Chromium, from navigation to the first rows of the table, if playwright is installed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path

from calibration.studies import design
from calibration.studies.plan import Cell, Plan, Setting
from calibration.studies.results import Study
from calibration.studies.store import Store
from calibration.studies.worker import Scored

GRID = {
    "hardware.adc.bits": list(range(4, 14)),
    "hardware.output_noise": [round(0.01 * k, 2) for k in range(100)],
    "recipe": [None, "fast"],
    "time": [10.0**k for k in range(10)],
    "seed": "0..4",
}
FAST = {"name": "fast", "steps": ["InputRanges", "DriftCompensation"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for the store and the page")
    folder = parser.parse_args().keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    store, page = folder / "large.sqlite", folder / "large.html"
    if not store.exists():
        timed("store 100,000 cells, one transaction each", lambda: fill(store))
    timed("summary query (count, mean of every setting and time)", lambda: query(store))
    study = Study(store)
    timed("Study.table with intervals", study.table)
    timed("report written", lambda: Study(store).report(page))
    sizes = [path.stat().st_size / 1e6 for path in (store, page)]
    print(f"store {sizes[0]:.1f} MB, page {sizes[1]:.2f} MB, {len(study.table()):,} rows")
    browse(page)


def timed(what: str, run) -> None:
    began = time.perf_counter()
    run()
    print(f"{what}: {time.perf_counter() - began:.2f} s")


def fill(path: Path) -> None:
    """Cells whose scores follow a formula."""
    plan = Plan(design.read({"title": "100,000 cells", "model": "none", "grid": GRID}))
    common = {"model": {"fingerprint": "none"}, "task": {"name": "none", "primary": "spearman"}, "pattern": None}
    plan.setups["digital"] = {**common, "hardware": None, "recipe": None}
    for number, (labels, _, times, seeds) in enumerate(plan.design.combinations()):
        recipe = None if labels["recipe"] is None else FAST
        plan.setups[f"{number}"] = {**common, "hardware": {}, "recipe": recipe}
        axes = {name: value for name, value in labels.items() if name not in ("time", "seed")}
        plan.settings.append(Setting(axes, f"{number}", "digital"))
        for seconds, seed in product(times, seeds):
            cell = Cell(f"{number} {seconds} {seed}", f"{number}", seconds, seed)
            plan.cells[cell.id] = cell
    with Store(path, create=True) as kept:
        kept.enter(plan)
        run = kept.begin(plan.id, plan.provenance("local", 1))
        for cell in plan.cells.values():
            axes = plan.settings[int(cell.setup)].axes
            value = 0.8 - axes["hardware.output_noise"] / axes["hardware.adc.bits"] - 0.01 * (cell.seed or 0)
            arm = "analog" if axes["recipe"] is None else "calibrated"
            kept.record(
                cell.id, Scored(cell.seconds, {arm: {"spearman": value}}, 0.1, [("adc_conversions", 8, 1)]), run
            )
        kept.end(run)


def query(path: Path) -> None:
    with Store(path) as kept:
        kept.progress(kept.studies()[-1])
        rows = kept.connection.execute(
            "SELECT setup, seconds, arm, metric, count(*), avg(value) FROM cells JOIN scores ON cell = key "
            "GROUP BY setup, seconds, arm, metric"
        ).fetchall()
    assert len(rows) == 20_000


def browse(page: Path) -> None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("opening: not measured, playwright is not installed")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page()
        timed("opened in Chromium", lambda: (tab.goto(page.as_uri()), tab.wait_for_selector("#table tbody tr")))
        timed("sorted by mean", lambda: tab.click("#table th button:has-text('mean')"))
        print(f"rows in the page: {tab.locator('#table tbody tr').count()}")
        browser.close()


if __name__ == "__main__":
    main()
