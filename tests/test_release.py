"""What is released: versions that agree, a citation, and the wheel and source archive of `make dist`."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("crossbar", "attention", "calibration")
REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {
    "abstract",
    "date-released",
    "doi",
    "keywords",
    "license",
    "repository-code",
    "type",
    "url",
    "version",
}
"""Of the Citation File Format 1.2.0, what it needs and what of the rest is used here."""


def test_versions_and_dates_agree():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", line) for line in headings]
    assert all(versions), headings
    assert [found[1] for found in versions] == ["0.2.0", "0.1.0"]
    assert versions[0].groups() == (PROJECT["version"], cited["date-released"])
    assert cited["version"] == PROJECT["version"]


def test_the_citation_has_what_its_format_asks_for():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(cited) >= REQUIRED
    assert set(cited) <= ALLOWED
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["license"] == PROJECT["license"]
    assert all(set(author) <= {"name", "family-names", "given-names", "orcid"} for author in cited["authors"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source archive of the tree as it is."""
    pytest.importorskip("build", reason="pip install '.[release]', as make dist does")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def tracked(*folders):
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return {name for name in listed if name and (ROOT / name).is_file()}


@pytest.mark.slow
def test_the_wheel_has_the_packages_and_their_data_alone(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"ohmformer-{PROJECT['version']}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if name.startswith(f"ohmformer-{PROJECT['version']}.dist-info/")}
    assert names - about == tracked(*PACKAGES)
    assert {name.partition("/")[2] for name in about} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}
    for data in ("crossbar/costs/price_books/hermes.yaml", "calibration/studies/report.html.j2", "attention/py.typed"):
        assert data in names


@pytest.mark.slow
def test_the_source_archive_has_the_repository(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert names - {"PKG-INFO"} == tracked()


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--target", place, wheel], check=True)
    code = (
        "import crossbar, attention, calibration\n"
        "from calibration import cli\n"
        "from crossbar.costs import prices\n"
        "print([module.__file__ for module in (crossbar, attention, calibration)])\n"
        "print(prices.names())\n"
        "cli.main(['doctor'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(place)) >= len(PACKAGES)
    assert "package calibration" in done.stdout
