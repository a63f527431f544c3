"""Notebook 05 in a real browser: the explorer shows the picture of the ε and the model that were chosen, at once."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "05_attention_under_attack.ipynb"


@pytest.fixture(scope="module")
def page(browser):
    return browser.new_page(viewport={"width": 1280, "height": 1000})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "figures", folder / "figures")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "AART_QUICK": "1", "PYTHONPATH": str(ROOT)}
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--IdentityProvider.token=", "--allow-root"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None"],
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def status(page):
    return page.locator("p[role=status]").last


def picture(page) -> str:
    """Where the browser has the picture now shown from; another picture has another address."""
    return page.locator(".jupyter-widgets.widget-image").last.get_attribute("src")


def wait_for_status(page, pattern: str, seconds: float) -> float:
    """Seconds until the explorer says ``pattern``."""
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        if re.search(pattern, status(page).inner_text()):
            return time.perf_counter() - started
        time.sleep(0.05)
    pytest.fail(f"after {seconds} s the explorer says {status(page).inner_text()!r}, not {pattern!r}")


def test_explorer_follows_the_slider_and_the_menu(page, lab, tmp_path):
    """The screenshots stay in the test's temporary folder for looking at."""
    page.goto(f"{lab}/lab/tree/notebooks/{NAME}?reset")
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    page.wait_for_timeout(2_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector("p[role=status]", timeout=150_000, state="attached")
    # The cells after the explorer run too; until then the kernel has no time for its widgets.
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=150_000, state="attached")
    status(page).scroll_into_view_if_needed()
    wait_for_status(page, "epsilon = ", 30)

    handle = page.locator(".widget-slider .noUi-handle").last
    before, epsilon = picture(page), re.search(r"epsilon = ([\d.]+)", status(page).inner_text())[1]
    handle.focus()
    handle.press("ArrowRight")  # by keyboard, as a person without a mouse would
    stronger = f"{1.5 * float(epsilon):.4f}"
    assert wait_for_status(page, f"epsilon = {stronger[:5]}", 10) < 2
    assert picture(page) != before
    page.screenshot(path=tmp_path / "slider.png")

    before = picture(page)
    menu = page.locator(".widget-dropdown select").filter(has_text="a-art").last
    other = next(text for text in menu.locator("option").all_inner_texts() if text == "a-art")
    menu.select_option(label=other)
    assert wait_for_status(page, f"model = {re.escape(other)}", 10) < 2
    assert picture(page) != before
    page.screenshot(path=tmp_path / "model.png")
