"""kill -9 of the driver and of workers at random moments loses nothing and computes nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibration import study
from calibration.studies.local import SCRIPT
from calibration.studies.store import Store
from tests.calibration.studies import tiny

KILLS = 20
WITHIN = 2.0  # s: that workers live after their driver
DRIVER = "import json, sys; from calibration import study; study(json.loads(sys.argv[1]), store=sys.argv[2], workers=2)"


def workers_of(process):
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    except OSError:  # one of them ended meanwhile
        return []
    return [pid for pid, command in commands.items() if b"worker_process" in command]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a driver's workers through /proc")
def test_kills_at_random_moments(folder, tmp_path):
    grid = tiny.config(folder)["grid"] | {"time": ["0s", "1h", "1d", "30d", "1y"], "seed": "0..9"}
    config = tiny.config(folder, grid=grid)
    whole, store = tmp_path / "whole.sqlite", tmp_path / "killed.sqlite"
    study(config, store=whole, workers=2)

    draw, kills, seen = random.Random(8), {"driver": 0, "worker": 0}, set()
    driver = None
    while sum(kills.values()) < KILLS:
        if driver is None or driver.poll() is not None:
            driver = subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(config), str(store)])
            early = draw.random() < 0.2  # struck while it starts
            while not early and not workers_of(driver) and driver.poll() is None:
                time.sleep(0.1)
        time.sleep(draw.uniform(0, 7))
        workers = workers_of(driver)
        seen.update(workers)
        victim = "worker" if workers and kills["worker"] < KILLS // 2 and draw.random() < 0.6 else "driver"
        os.kill(draw.choice(workers) if victim == "worker" else driver.pid, signal.SIGKILL)
        kills[victim] += 1
        if victim == "driver":
            driver.wait()
            until = time.monotonic() + WITHIN
            while any(map(alive, workers)) and time.monotonic() < until:
                time.sleep(0.05)
            assert not any(map(alive, workers))
            with Store(store, create=True) as kept:
                assert kept.intact()
    assert len(tiny.scores(store)) < len(tiny.scores(whole))  # every kill struck a study that was not finished
    if driver.poll() is None:
        driver.wait()
    study(config, store=store, workers=2)

    assert min(kills.values()) > 0
    assert tiny.scores(store) == tiny.scores(whole)
    assert len(tiny.scores(store)) == 2 * 2 * 2 * 5 * 10 + 2 * 2
    assert tiny.column(store, "SELECT count(*) FROM cells WHERE status = 'done'") == [2 * 2 * 2 * 5 * 10 + 2]
    with Store(store) as kept:
        assert kept.intact()
    time.sleep(WITHIN)
    assert not [pid for pid in seen if alive(pid)]


BUSY = """
import runpy, sys, time
tether = runpy.run_path({script!r})["tether"]
tether(int(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
{how}
"""
DRIVEN = """
import os, subprocess, sys
from multiprocessing.connection import Pipe
ours, theirs = Pipe()
command = [sys.executable, "-P", "-c", sys.argv[1], str(theirs.fileno()), str(os.getpid())]
worker = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE)
theirs.close()
worker.stdout.readline()
print(worker.pid, flush=True)
worker.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and elsewhere waits for Python's lock")
@pytest.mark.parametrize(
    "how",
    [
        "time.sleep(60)",
        "'a' * 28 == __import__('re').match('(a*)*b', 'a' * 28)",  # holds Python's lock for minutes
    ],
)
def test_a_worker_ends_with_its_driver_whatever_it_computes(how):
    command = [sys.executable, "-c", DRIVEN, BUSY.format(script=SCRIPT, how=how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        worker = int(driver.stdout.readline())
        time.sleep(0.2)
        assert alive(worker)
        driver.kill()
        until = time.monotonic() + WITHIN
        while alive(worker) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(worker)
