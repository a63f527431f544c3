"""JupyterLab in a real browser: the explorer shows the picture of the ε and the model that were chosen, at once."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import execute
import nbformat
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


@pytest.fixture
def page(browser, tmp_path):
    """A notebook with the explorer in a JupyterLab."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=execute.METADATA)
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--IdentityProvider.token=", "--allow-root"]
    options += ["--KernelManager.transport=ipc"]  # two kernels started at once can take the same port
    options += [f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    env = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?reset")
        yield page
    finally:
        server.terminate()
        server.wait(20)


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


def test_explorer_follows_the_slider_and_the_menu(page):
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
