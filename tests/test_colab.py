"""`make colab REPO=owner/name`: badges and the setup cell's variable, and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import colab
import execute
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
NAME = PATHS[1].name


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "a project"
    (folder / "notebooks").mkdir(parents=True)
    for path in (f"notebooks/{NAME}", "notebooks/colab.py", "README.md"):
        shutil.copy(ROOT / path, folder / path)
    return folder


def contents(project: Path) -> dict:
    return {path.name: path.read_bytes() for path in colab.files(project)}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_badge_and_variable_name_the_repository_and_fresh_outputs_stay_fresh(path):
    before = path.read_text(encoding="utf-8")
    pointed = colab.point(before, "some-one/a.art")
    assert f"github/some-one/a.art/blob/main/notebooks/{path.name}" in pointed, "no badge"
    assert 'REPOSITORY = \\"some-one/a.art\\"' in pointed, "no setup cell"
    fresh = [f'"executed": "{execute.code_hash(nbformat.reads(t, as_version=4))}"' in t for t in (before, pointed)]
    assert fresh[0] == fresh[1]
    changed = [new for old, new in zip(before.splitlines(), pointed.splitlines(), strict=True) if old != new]
    assert all("some-one/a.art" in line or '"executed"' in line for line in changed)


def test_a_second_name_replaces_the_first_and_the_same_again_changes_nothing(project, capsys):
    # as a command, with nothing but Python
    subprocess.run([sys.executable, "-I", "-S", str(project / "notebooks" / "colab.py"), "two/second"], check=True)
    once = contents(project)
    assert json.loads(once[NAME]) and b"two/second" in once[NAME]
    assert colab.main(["one/first"], project) == 0
    assert contents(project)[NAME] != once[NAME]
    colab.main(["https://github.com/two/second/"], project)
    assert contents(project) == once
    colab.main(["two/second"], project)
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 of 2 files")


@pytest.mark.parametrize("wrong", ["", "owner", "owner/name/more", "own er/name", 'o/n"', "owner/"])
def test_what_is_no_repository_changes_nothing(project, wrong, capsys):
    before = contents(project)
    assert colab.main([wrong], project) == 2
    assert "owner/name" in capsys.readouterr().err
    assert contents(project) == before
