"""What all tests share: genuine data where it is there, one thread for torch, and repeatable property tests."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


def pytest_configure():
    """The models are tiny, and tests run side by side (pytest-xdist): more threads would only wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the notebooks' kernels and of commands that tests start
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what they compare with lies on the CPU, and so shall the trainings
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with genuine shards; tests that need it are skipped where it is not there."""
    folder = os.environ.get("AART_REAL_DATA", "")
    if not folder:
        pytest.skip("set AART_REAL_DATA to a folder with genuine AudioSet and YouTube-8M shards to run this test")
    if not Path(folder).is_dir():
        pytest.skip(f"AART_REAL_DATA names {folder!r}, which is not a folder; set it to one with genuine shards")
    return Path(folder)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A function that writes a few synthetic videos of the default kind, with changes; returns their folder."""
    from aart_lib.data import synthetic

    def write(**changes) -> Path:
        folder = tmp_path_factory.mktemp("written") / "data"
        synthetic.write(replace(synthetic.SETTINGS["default"], **changes), folder)
        return folder

    return write


@pytest.fixture(scope="session")
def shorten():
    """A function that patches all suites: their attacks have at most so many steps and one restart."""
    from aart_lib import attacks
    from aart_lib.experiment import suites

    def patched(patch, most: int = 2) -> None:
        def pgd(threat, steps, restarts, **options):
            return attacks.pgd(threat, min(steps, most), 1, **options)

        def attack(threat, steps, **options):
            return attacks.Attack(threat, steps=min(steps, most), **options)

        patch.setattr(suites, "pgd", pgd)
        patch.setattr(suites, "Attack", attack)

    return patched


@pytest.fixture
def short_suite(monkeypatch, shorten):
    """Attacks of all suites have at most two steps and one restart."""
    shorten(monkeypatch)


@pytest.fixture
def no_figures(monkeypatch):
    """Reports are written without their figures, which take seconds."""

    def draw(*arguments):
        return {}

    monkeypatch.setattr("aart_lib.experiment.report.draw", draw)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; skips where there is none, or no Playwright."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed; nothing is tested in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the `browser` extra: playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
