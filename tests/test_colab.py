"""`make colab REPO=owner/name`: badges and the setup cell's variable, and nothing else."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BADGE = "https://colab.research.google.com/github/{}/blob/main/notebooks/01_data_loading.ipynb"


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"notebooks_{name}", NOTEBOOKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


colab = module("colab")


def a_notebook(repository="", *, owner="OWNER/NAME", executed=None) -> str:
    code = ["# Setup.\n", f'REPOSITORY = "{repository}"  # "owner/name" on GitHub\n', "import os, sys"]
    cell = {"cell_type": "code", "execution_count": 1, "id": "b", "metadata": {}, "outputs": [], "source": code}
    text = [f"[![Open in Colab](badge.svg)]({BADGE.format(owner)})\n", "# Daten, données, данные"]
    notebook = {
        "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": text}, cell],
        "metadata": {"aart": {"executed": executed or "0" * 16}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    written = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return written if executed else written.replace("0" * 16, colab.code_hash(written))


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "a project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "01_data_loading.ipynb").write_text(a_notebook(), encoding="utf-8", newline="")
    (folder / "README.md").write_text(f"# Title\n\n[badge]({BADGE.format('OWNER/NAME')})\n", encoding="utf-8")
    return folder


def test_badges_and_variable_name_the_repository(project):
    assert colab.main(["some-one/a.art"], project) == 0
    text = (project / "notebooks" / "01_data_loading.ipynb").read_text(encoding="utf-8")
    assert text == a_notebook("some-one/a.art", owner="some-one/a.art")  # byte for byte: the formatting is kept
    assert (project / "README.md").read_text() == f"# Title\n\n[badge]({BADGE.format('some-one/a.art')})\n"


def test_a_second_name_replaces_the_first_and_the_same_again_changes_nothing(project, capsys):
    colab.main(["one/first"], project)
    colab.main(["https://github.com/two/second/"], project)
    colab.main(["two/second"], project)
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 of 2 files")
    text = (project / "notebooks" / "01_data_loading.ipynb").read_text(encoding="utf-8")
    assert text == a_notebook("two/second", owner="two/second")


@pytest.mark.parametrize("wrong", ["", "owner", "owner/name/more", "own er/name", 'o/n"', "owner/"])
def test_what_is_no_repository_changes_nothing(project, wrong, capsys):
    before = {path: path.read_bytes() for path in colab.files(project)}
    assert colab.main([wrong], project) == 2
    assert "owner/name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in colab.files(project)} == before


def test_every_notebook_can_be_pointed():
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    assert paths
    for path in paths:
        pointed = colab.point(path.read_text(encoding="utf-8"), "some-one/aart")
        assert f"github/some-one/aart/blob/main/notebooks/{path.name}" in pointed, f"{path.name} has no badge"
        assert 'REPOSITORY = \\"some-one/aart\\"' in pointed, f"{path.name} has no setup cell"
        json.loads(pointed)


def test_hash_is_the_one_of_execute():
    nbformat = pytest.importorskip("nbformat")
    execute = module("execute")
    text = a_notebook("one/first")
    assert colab.code_hash(text) == execute.code_hash(nbformat.reads(text, as_version=4))
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        text = path.read_text(encoding="utf-8")
        assert colab.code_hash(text) == execute.code_hash(nbformat.reads(text, as_version=4)), path.name


def test_runs_as_a_command_with_nothing_but_python(project):
    shutil.copy(NOTEBOOKS / "colab.py", project / "notebooks")
    command = [sys.executable, "-I", "-S", str(project / "notebooks" / "colab.py"), "one/first"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 of 2 files" in done.stdout
