"""The notebooks run from an empty kernel, what they show is fresh, and every exercise can be solved as printed."""

import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbconvert import PythonExporter

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
LONGEST_CELL = 20  # lines
PLACE = re.compile(r"(?<![\w.:/~-])/(?:root|home|Users|work|tmp|var|usr|opt|mnt|private|content)/|[A-Z]:\\+Users")
SOLUTION = re.compile(r"```python\n(.*?)\n```", re.DOTALL)
SEEN = re.compile(r"^(.*)<!-- seen(?:: (.*))? -->$", re.MULTILINE)  # its bold numbers stand in the stored outputs
NUMBER = re.compile(r"\*\*[^*]*?(\d[\d.,]*\d|\d)[^*]*\*\*")
SETTING = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)  # in the setup cell
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")

_spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)

SHOWS = re.compile(r"\s*(print|display|plots?|plt|fig|axe?s?|style)\b[.(,]")  # a line that prints or plots
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def numbered(number: str):
    return read(next(FOLDER.glob(f"{number}_*.ipynb")))


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def texts(cell) -> str:
    """All that a cell's outputs say, pictures left out."""
    found = []
    for output in cell.outputs:
        found.append(output.get("text", ""))
        found += [v for kind, v in output.get("data", {}).items() if kind.startswith("text/")]
        found += output.get("traceback", [])
    return "\n".join(found)


def warnings_of(cell) -> str:
    """What a cell wrote to standard error, progress bars left out."""
    errors = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr")
    lines = re.split(r"[\r\n]", errors)
    return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\|", line))


def setup_cell(notebook) -> str:
    return code_cells(notebook)[0].source


def seen_sentences(notebook) -> list[tuple[str, str]]:
    """(sentence, what the cells of its section have printed so far) for each sentence that ends with the mark."""
    found, printed = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed += "".join(output.text for output in cell.outputs if output.output_type == "stream")
            continue
        found += [(sentence, printed) for sentence, _ in SEEN.findall(cell.source)]
        printed = "" if re.search("^## ", cell.source, re.MULTILINE) else printed
    return found


def missing_numbers(sentence: str, printed: str) -> list[str]:
    """Bold numbers of a sentence that were not printed; all of it if it has none."""
    numbers = NUMBER.findall(sentence) or [sentence]
    return [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", printed)]


# ---------------------------------------------------------------- what is stored


@every_notebook
def test_stored_outputs_come_from_one_run_of_this_code(path):
    notebook = read(path)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"run notebooks/execute.py {path.name[:2]}"
    stored = notebook.metadata.get("aart", {}).get("executed")
    assert stored == execute.code_hash(notebook), f"the code changed: run notebooks/execute.py {path.name[:2]}"


@every_notebook
def test_stored_outputs_can_be_seen_without_running_and_name_no_folder(path):
    notebook = read(path)
    assert path.stat().st_size <= execute.LARGEST
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not [output for output in outputs if execute.WIDGET in output.get("data", {})]
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert not PLACE.search(texts(cell)), texts(cell)
        assert not warnings_of(cell)
    pictures = sum(any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in code_cells(notebook))
    described = sum(cell.source.count("*Figure") for cell in notebook.cells if cell.cell_type == "markdown")
    assert described >= pictures, "every figure has a text"


@every_notebook
def test_marked_sentences_say_the_numbers_that_their_section_printed(path):
    sentences = seen_sentences(read(path))
    for sentence, printed in sentences:
        assert not missing_numbers(sentence, printed), f"{sentence}\nis not what was printed:\n{printed}"
    assert len(sentences) >= 6


def named_numbers() -> dict[str, dict[str, str]]:
    """{name of a quantity: {notebook: its bold number}}; a mark names them in their order, _ is without a name."""
    found: dict[str, dict[str, str]] = {}
    for path in PATHS:
        for cell in read(path).cells:
            for sentence, names in SEEN.findall(cell.source if cell.cell_type == "markdown" else ""):
                numbers = NUMBER.findall(sentence)
                for name, number in zip(names.split(), numbers, strict=bool(names)):
                    assert name == "_" or found.setdefault(name, {}).setdefault(path.stem, number) == number, sentence
    return {name: where for name, where in found.items() if name != "_"}


def test_the_same_quantity_has_the_same_number_in_all_notebooks():
    for name, where in named_numbers().items():
        assert len(set(where.values())) == 1, f"{name}: {where}"


def test_a_number_that_drifted_is_found():
    assert missing_numbers("**40 %** of .9, and **0.559**.", "40 % and 0.559 and 0.5591") == []
    assert missing_numbers("**40 %** and **0.559**.", "140 %, 40.1 and 0.5591") == ["40", "0.559"]
    assert missing_numbers("No number.", "1") and missing_numbers("**two**", "2")


def test_a_kernel_is_given_nothing_that_could_change_an_output(monkeypatch):
    for name in ("AART_REAL_DATA", "AART_QUICK", "AART_CACHE", "MPLBACKEND", "PYTHONWARNINGS", "LC_ALL", "IPYTHONDIR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(execute.NotebookClient, "execute", lambda self, env: env)
    given = execute.run(nbformat.v4.new_notebook())
    assert "x" not in given.values() and given["PATH"] == os.environ["PATH"] and given["PYTHONPATH"] == str(ROOT)
    assert execute.environment(AART_QUICK="1") == execute.environment() | {"AART_QUICK": "1"}


def test_stored_outputs_at_scale_come_from_generated_videos_as_the_text_says():
    said = "\n".join(map(texts, code_cells(read(next(FOLDER.glob("07*.ipynb"))))))
    assert "generated videos in" in said and "generated, this notebook" in said
    assert not re.search(r"genuine videos in|genuine, this notebook", said)


def test_minutes_of_instructors_and_overview_are_the_notebooks_own():
    text = (FOLDER / "INSTRUCTORS.md").read_text(encoding="utf-8")
    planned: dict[str, int] = {}
    for minutes, number in re.findall(r"^\| (\d+) \| (\d\d)", text, re.MULTILINE):
        planned[number] = planned.get(number, 0) + int(minutes)
    time = re.compile(r"\*\*Time:\*\* (?:about )?(\d+) min")
    told = {path.stem[:2]: int(time.search(read(path).cells[0].source)[1]) for path in PATHS}
    overview = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert planned == told
    assert {n: int(m) for n, m in re.findall(r"\| \[(\d\d) .* \| (\d+) \|$", overview, re.MULTILINE)} == told
    hours = round(sum(planned.values()) / 60)
    assert f"about {['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'][hours]} hours" in text


# ---------------------------------------------------------------- how they are written


@every_notebook
def test_cells_are_short_and_links_lead_to_files(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
            continue
        text = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)  # code has brackets of its own
        assert not [target for target in LINK.findall(text) if not (FOLDER / target).exists()]


@every_notebook
def test_words_are_few_cells_are_small_and_code_shows_the_science(path):
    notebook = read(path)
    prose = [
        re.sub(r"```.*?```|<!--.*?-->", "", c.source, flags=re.S) for c in notebook.cells if c.cell_type == "markdown"
    ]
    assert sum(len(text.split()) for text in prose) <= 1800
    cells = [
        [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        for cell in code_cells(notebook)[1:]
    ]
    assert statistics.median(map(len, cells)) <= 8
    lines = [line for cell in cells for line in cell]
    assert sum(bool(SHOWS.match(line)) for line in lines) <= len(lines) / 4


@every_notebook
def test_setup_cell_and_badge_are_the_same_everywhere(path):
    assert setup_cell(read(path)) == setup_cell(numbered("00"))
    assert sum(map(bool, setup_cell(read(path)).splitlines())) <= 8
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("[![Open in Colab](")
    assert f"/notebooks/{path.name})" in first.source.splitlines()[0]


@every_notebook
def test_exercises_have_stub_check_and_one_solution(path):
    notebook = read(path)
    parts = [tagged(notebook, f"exercise-{part}") for part in ("stub", "check", "solution")]
    assert len({len(part) for part in parts}) == 1 and len(parts[0]) >= (0 if path.stem[:2] == "00" else 2)
    for stub, check, solution in zip(*parts, strict=True):
        places = [notebook.cells.index(cell) for cell in (stub, check, solution)]
        assert places == sorted(places) and solution.cell_type == "markdown" and "<details>" in solution.source
        assert len(SOLUTION.findall(solution.source)) == 1
        assert "not yet" in texts(check)


# ---------------------------------------------------------------- they run


def with_solutions(notebook):
    """The notebook with every printed solution and its check once more as cells of their own."""
    cells, check = [], None
    for cell in notebook.cells:
        cells.append(cell)
        tags = cell.metadata.get("tags", [])
        if "exercise-check" in tags:
            check = cell.source
        if "exercise-solution" in tags:
            cells.append(nbformat.v4.new_code_cell(SOLUTION.search(cell.source)[1]))
            cells.append(nbformat.v4.new_code_cell(check, metadata={"tags": ["solved"]}))
    notebook.cells = cells
    return notebook


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the notebooks' folder, checkpoints and figures beside it: a run cannot change what is stored."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "figures"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".*", "*.ipynb", "__pycache__"))
    return folder / "notebooks"


@pytest.mark.timeout(60)
def test_a_widget_that_shows_much_does_not_keep_the_runner_waiting_for_ever(tmp_path):
    """It did, in most runs: the widget's own message swallowed the signal that the cell's reply had come."""
    source = "import ipywidgets as w\nw.interactive_output(lambda i: print('x' * i), {'i': w.fixed(500_000)})"
    cells = [nbformat.v4.new_code_cell(source) for _ in range(8)]
    done = execute.run(nbformat.v4.new_notebook(cells=cells), tmp_path, library=ROOT)
    assert all(cell.outputs for cell in done.cells)


@every_notebook
@pytest.mark.timeout(600)  # a notebook may take three minutes on two quiet cores
def test_runs_from_an_empty_kernel_and_exercises_can_be_solved(path, copy):
    """One run for two facts: no cell fails or warns, and the printed solutions pass the checks that the stubs fail."""
    env = os.environ | {"AART_QUICK": "1"}
    notebook = execute.run(with_solutions(read(path)), copy.parent, library=ROOT, env=env)  # not the notebooks' folder
    for cell in code_cells(notebook):
        assert not warnings_of(cell), cell.source
    stubs, solved = tagged(notebook, "exercise-check"), tagged(notebook, "solved")
    assert len(stubs) == len(solved)
    for before, after in zip(stubs, solved, strict=True):
        assert "not yet" in texts(before) and "correct" not in texts(before), before.source
        assert "correct" in texts(after) and "not yet" not in texts(after), f"{before.source}\n{texts(after)}"


@pytest.mark.parametrize("number", ["00", "02"])
def test_run_all_twice_in_one_kernel_shows_the_same_twice(number, copy):
    notebook = numbered(number)
    again = [cell | {"id": f"{cell.id}-again"} for cell in notebook.cells]
    notebook.cells = [nbformat.from_dict(cell) for cell in [*notebook.cells, *again]]
    env = os.environ | {"AART_QUICK": "1"}
    said = list(map(texts, code_cells(execute.run(notebook, copy, library=ROOT, env=env))))
    assert said[: len(said) // 2] == said[len(said) // 2 :]


@every_notebook
def test_a_script_made_of_a_notebook_needs_neither_ipython_nor_a_window(path):
    text = PythonExporter().from_filename(path)[0]
    compile(text, path.name, "exec")
    assert "get_ipython" not in text and "plt.show" not in text


def test_the_first_notebook_runs_as_a_script_without_a_warning(copy, tmp_path):
    (tmp_path / "script.py").write_text(PythonExporter().from_filename(PATHS[0])[0], encoding="utf-8")
    env = os.environ | {"AART_QUICK": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=copy.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the setup cell, wherever it runs


def refuse(*command, **options):
    raise AssertionError(f"nothing must be run, got {command}")


@pytest.fixture
def setup(monkeypatch):
    """A function that runs a setup cell in a folder, naming a repository or none; returns where it ends."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(subprocess, "run", refuse)

    def run(folder: Path, repository: str = "") -> Path:
        monkeypatch.chdir(folder)
        exec(SETTING.sub(f'REPOSITORY = "{repository}"', setup_cell(numbered("00")), count=1), names := {})
        assert names["DEVICE"] in ("cpu", "cuda") and callable(names["display"])
        return Path.cwd()

    return run


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """An empty folder in Colab, where the library is not installed; git makes a small clone there, or fails."""
    git = types.SimpleNamespace(folder=tmp_path / "content", runs=[], online=True)

    def run(command, **options):
        git.runs.append(" ".join(map(str, command)))
        if command[0] == "git" and git.online and not Path("aart").exists():
            shutil.copytree(FOLDER, "aart/notebooks", ignore=shutil.ignore_patterns("*.ipynb", "*.safetensors"))
            Path("aart/aart_lib").mkdir()
            return subprocess.CompletedProcess(command, 0)
        return subprocess.CompletedProcess(command, 128 if command[0] == "git" else 0)

    git.folder.mkdir()
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    git.run = run
    return git


@pytest.mark.parametrize("start", [".", "notebooks/checkpoints", "aart_lib", "elsewhere/checkpoints"])
def test_setup_finds_the_project_from_any_folder_and_twice(setup, start, tmp_path):
    (tmp_path / "elsewhere" / "checkpoints").mkdir(parents=True)  # as a run of `reproduce` leaves one
    assert setup(tmp_path / "elsewhere" if start.startswith("elsewhere") else ROOT / start) == FOLDER
    assert setup(Path.cwd()) == FOLDER


def test_colab_clones_once_and_needs_no_network_after_a_restart(setup, colab, monkeypatch):
    monkeypatch.setattr(subprocess, "run", colab.run)
    notebooks = setup(colab.folder, "owner/name")
    assert notebooks == (colab.folder / "aart" / "notebooks").resolve()
    colab.online = False
    for start in (colab.folder, notebooks, notebooks.parent):  # restarted; run again; started inside
        assert setup(start, "owner/name") == notebooks
    assert setup(colab.folder, "") == notebooks
    assert sum(run.startswith("git ") for run in colab.runs) == 1 and str(notebooks.parent) in sys.path
    assert not [run for run in colab.runs if {"torch", "numpy"} & {*run.split()}], "Colab's own must stay"
    assert setup(ROOT) == FOLDER and str(ROOT) in sys.path  # a clone whose library is not installed


def test_a_setup_cell_without_the_library_says_what_to_do(tmp_path):
    (tmp_path / "setup.py").write_text(setup_cell(numbered("00")), encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", "-S", "setup.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "Set REPOSITORY above, or start Jupyter in the project" in done.stderr
