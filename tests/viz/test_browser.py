"""JupyterLab in a real browser: the explorer shows the picture of the ε and the model that were chosen, at once."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The notebooks themselves are run elsewhere, without a browser.
CELL = f"""
from aart_lib import ThreatModel, checkpoint, open_data
from aart_lib.data import synthetic
from aart_lib.viz.explorer import Explorer

folder = {str(ROOT / "notebooks" / "checkpoints")!r}
models = {{name: checkpoint.load(f"{{folder}}/{{name}}-seed0.safetensors")[0] for name in ("standard", "a-art")}}
names = synthetic.names(synthetic.SETTINGS["default"])
Explorer(models, open_data("synthetic").test, names, ThreatModel("linf", 0.0416), videos=[0, 1])
"""


@pytest.fixture(scope="module")
def page(browser):
    return browser.new_page(viewport={"width": 1280, "height": 1000})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a notebook with the explorer in a JupyterLab."""
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": CELL}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "explorer.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "PYTHONPATH": str(ROOT)}
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--IdentityProvider.token=", "--allow-root"]
    options += ["--KernelManager.transport=ipc"]  # two kernels started at once can take the same port
    log = (folder / "log").open("w", encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None"],
        env=os.environ | settings,
        stdout=log,
        stderr=log,
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?reset"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def picture(page) -> str:
    """Where the browser has the picture now shown from; another picture has another address."""
    return page.locator(".jupyter-widgets.widget-image").get_attribute("src")


def wait_for_status(page, pattern: str, seconds: float) -> float:
    """Seconds until the explorer says ``pattern``."""
    started, status = time.perf_counter(), page.locator("p[role=status]")
    while time.perf_counter() - started < seconds:
        if re.search(pattern, status.inner_text()):
            return time.perf_counter() - started
        time.sleep(0.05)
    pytest.fail(f"after {seconds} s the explorer says {status.inner_text()!r}, not {pattern!r}")


def run_all(page, seconds: float) -> None:
    """Choose Run All until the cell runs: while the kernel connects, JupyterLab refuses, in a dialog or silently."""
    started, prompt = time.perf_counter(), page.locator(".jp-CodeCell .jp-InputPrompt").first
    while not re.search(r"[*\d]", prompt.inner_text()) and time.perf_counter() - started < seconds:
        if page.locator(".jp-Dialog .jp-mod-accept").count():
            page.locator(".jp-Dialog .jp-mod-accept").first.click()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(1000)


def test_explorer_follows_the_slider_and_the_menu(page, lab):
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000, state="attached")
    run_all(page, 60)
    page.wait_for_selector("p[role=status]", timeout=150_000, state="attached")
    wait_for_status(page, "epsilon = 0.0416", 30)

    before, handle = picture(page), page.locator(".widget-slider .noUi-handle")
    handle.focus()
    handle.press("ArrowRight")  # by keyboard, as a person without a mouse would
    assert wait_for_status(page, "epsilon = 0.0624", 10) < 2
    assert picture(page) != before

    before = picture(page)
    page.locator(".widget-dropdown select").filter(has_text="a-art").select_option(label="a-art")
    assert wait_for_status(page, "model = a-art", 10) < 2
    assert picture(page) != before
