"""The notebooks run from an empty kernel, what they show is fresh, and every exercise can be solved as printed."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import execute
import nbformat
import pytest
from nbconvert import PythonExporter

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
LONGEST_CELL = 20  # lines
TWICE = "00", "02"  # these run twice in one kernel
PLACE = re.compile(r"(?<![\w.:/~-])/(?:root|home|Users|work|tmp|var|usr|opt|mnt|private|content)/|[A-Z]:\\+Users")
SOLUTION = re.compile(r"```python\n(.*?)\n```", re.DOTALL)
SEEN = re.compile(r"^(.*)<!-- seen(?:: (.*))? -->$", re.MULTILINE)  # its bold numbers stand in the stored outputs
NUMBER = re.compile(r"\*\*[^*]*?(\d[\d.,]*\d|\d)[^*]*\*\*")
SETTING = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)  # in the setup cell
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
SHOWS = re.compile(r"\s*(print|display|plots?|plt|fig|axe?s?|style)\b[.(,]")  # a line that prints or plots
TIME = re.compile(r"\*\*Time:\*\* (?:about )?(\d+) min")
HOURS = "zero one two three four five six seven eight".split()
QUICK = {"AART_QUICK": "1"}


def read(path: Path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return read(path)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def texts(cell) -> str:
    """All that a cell's outputs say, pictures left out."""
    found = [output.get("text", "") for output in cell.outputs]
    for output in cell.outputs:
        found += [content for kind, content in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(found)


def warnings_of(cell) -> str:
    """What a cell wrote to standard error, progress bars left out."""
    errors = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr")
    lines = re.split(r"[\r\n]", errors)
    return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\|", line))


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


def test_stored_outputs_come_from_one_run_of_this_code(path, notebook):
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"run notebooks/execute.py {path.name[:2]}"
    stored = notebook.metadata.get("aart", {}).get("executed")
    assert stored == execute.code_hash(notebook), f"the code changed: run notebooks/execute.py {path.name[:2]}"


def test_stored_outputs_can_be_seen_without_running_and_name_no_folder(path, notebook):
    assert path.stat().st_size <= execute.LARGEST
    assert "widgets" not in notebook.metadata
    pictures = 0
    for cell in code_cells(notebook):
        assert not PLACE.search(texts(cell)), texts(cell)
        assert not warnings_of(cell)
        shown = [output.get("data", {}) for output in cell.outputs if output.output_type != "error"]
        assert len(shown) == len(cell.outputs) and not any(execute.WIDGET in data for data in shown)
        pictures += any("image/png" in data for data in shown)
    described = sum(text.count("*Figure") for text in prose(notebook))
    assert described >= pictures >= 1, "every figure has a text"


def test_marked_sentences_say_the_numbers_that_their_section_printed(notebook):
    sentences = seen_sentences(notebook)
    for sentence, printed in sentences:
        assert not missing_numbers(sentence, printed), f"{sentence}\nis not what was printed:\n{printed}"
    assert len(sentences) >= 6


def test_a_number_that_drifted_is_found():
    assert missing_numbers("**40 %** of .9, and **0.559**.", "40 % and 0.559 and 0.5591") == []
    assert missing_numbers("**40 %** and **0.559**.", "140 %, 40.1 and 0.5591") == ["40", "0.559"]
    assert missing_numbers("No number.", "1") and missing_numbers("**two**", "2")


def test_the_same_quantity_has_the_same_number_in_all_notebooks():
    """A mark names its sentence's bold numbers in their order, _ is without a name."""
    known: dict[str, str] = {}
    for text in (text for path in PATHS for text in prose(read(path))):
        for sentence, names in SEEN.findall(text):
            for name, number in zip(names.split(), NUMBER.findall(sentence), strict=bool(names)):
                assert name == "_" or known.setdefault(name, number) == number, f"{name}: {sentence}"


def test_a_kernel_is_given_nothing_that_could_change_an_output(monkeypatch):
    for name in ("AART_REAL_DATA", "AART_QUICK", "AART_CACHE", "MPLBACKEND", "PYTHONWARNINGS", "LC_ALL", "IPYTHONDIR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(execute.NotebookClient, "execute", lambda self, env: env)
    given = execute.run(nbformat.v4.new_notebook())
    assert "x" not in given.values() and given["PATH"] == os.environ["PATH"] and given["PYTHONPATH"] == str(ROOT)
    assert execute.environment(**QUICK) == execute.environment() | QUICK


def test_stored_outputs_at_scale_come_from_generated_videos_as_the_text_says():
    said = "\n".join(map(texts, code_cells(read(PATHS[7]))))
    assert "generated videos in" in said and "generated, this notebook" in said
    assert not re.search(r"genuine videos in|genuine, this notebook", said)


def test_minutes_of_instructors_and_overview_are_the_notebooks_own():
    plan, overview = ((FOLDER / name).read_text(encoding="utf-8") for name in ("INSTRUCTORS.md", "README.md"))
    told = {path.stem[:2]: int(TIME.search(prose(read(path))[0])[1]) for path in PATHS}
    planned: Counter[str] = Counter()
    for minutes, number in re.findall(r"^\| (\d+) \| (\d\d)", plan, re.MULTILINE):
        planned[number] += int(minutes)
    assert planned == told
    assert {n: int(m) for n, m in re.findall(r"\| \[(\d\d) .* \| (\d+) \|$", overview, re.MULTILINE)} == told
    assert f"about {HOURS[round(planned.total() / 60)]} hours" in plan


# ---------------------------------------------------------------- how they are written


def test_words_are_few_and_links_lead_to_files(notebook):
    # code has brackets of its own
    written = [re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL) for text in prose(notebook)]
    assert sum(len(text.split()) for text in written) <= 1800
    assert not [target for text in written for target in LINK.findall(text) if not (FOLDER / target).exists()]


def test_cells_are_small_and_code_shows_the_science(notebook):
    cells = [cell.source.splitlines() for cell in code_cells(notebook)]
    assert max(map(len, cells)) <= LONGEST_CELL
    code = [[line for line in cell if line.strip() and not line.lstrip().startswith("#")] for cell in cells[1:]]
    assert statistics.median(map(len, code)) <= 8
    lines = [line for cell in code for line in cell]
    assert sum(bool(SHOWS.match(line)) for line in lines) <= len(lines) / 4


def setup_cell() -> str:
    return code_cells(read(PATHS[0]))[0].source


def test_setup_cell_and_badge_are_the_same_everywhere(path, notebook):
    assert code_cells(notebook)[0].source == setup_cell()
    assert sum(map(bool, setup_cell().splitlines())) <= 8
    badge = prose(notebook)[0].splitlines()[0]
    assert badge.startswith("[![Open in Colab](") and f"/notebooks/{path.name})" in badge


def test_exercises_have_stub_check_and_one_solution(path, notebook):
    parts = [tagged(notebook, f"exercise-{part}") for part in ("stub", "check", "solution")]
    assert len({len(part) for part in parts}) == 1 and len(parts[0]) >= (0 if path.stem[:2] == "00" else 2)
    for stub, check, solution in zip(*parts, strict=True):
        places = [notebook.cells.index(cell) for cell in (stub, check, solution)]
        assert places == sorted(places) and solution.cell_type == "markdown" and "<details>" in solution.source
        assert len(SOLUTION.findall(solution.source)) == 1
        assert "not yet" in texts(check)


# ---------------------------------------------------------------- they run


def with_solutions(notebook, times: int):
    """The notebook with every printed solution and its check once more as cells of their own, all of it so often."""
    cells, check = [], ""
    for cell in notebook.cells:
        cells.append(cell)
        tags = cell.metadata.get("tags", [])
        if "exercise-check" in tags:
            check = cell.source
        if "exercise-solution" in tags:
            cells.append(nbformat.v4.new_code_cell(SOLUTION.search(cell.source)[1]))
            cells.append(nbformat.v4.new_code_cell(check, metadata={"tags": ["solved"]}))
    notebook.cells = [nbformat.from_dict(cell | {"id": f"{cell.id}-{turn}"}) for turn in range(times) for cell in cells]
    return notebook


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the notebooks' folder, checkpoints and figures beside it: a run cannot change what is stored."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "figures"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".*", "*.ipynb", "__pycache__"))
    return folder / "notebooks"


@pytest.mark.timeout(60)
def test_a_widget_that_shows_much_does_not_keep_the_runner_waiting_for_ever(tmp_path):
    """It did, in most runs: the widget's own message swallowed the signal that the cell's reply had come."""
    source = "import ipywidgets as w\nw.interactive_output(lambda i: print('x' * i), {'i': w.fixed(500_000)})"
    cells = [nbformat.v4.new_code_cell(source) for _ in range(8)]
    done = execute.run(nbformat.v4.new_notebook(cells=cells), tmp_path, library=ROOT)
    assert all(cell.outputs for cell in done.cells)


@pytest.mark.timeout(600)  # a notebook may take three minutes on two quiet cores
def test_runs_from_an_empty_kernel_and_exercises_can_be_solved(path, notebook, copy):
    """One run for three facts: no cell fails or warns, the printed solutions pass the checks that the stubs fail, and
    cells that run once more in the same kernel say the same.
    """
    times = 1 + (path.stem[:2] in TWICE)
    # not started in the notebooks' folder
    done = execute.run(with_solutions(notebook, times), copy.parent, library=ROOT, env=os.environ | QUICK)
    for cell in code_cells(done):
        assert not warnings_of(cell), cell.source
    stubs, solved = tagged(done, "exercise-check"), tagged(done, "solved")
    for before, after in zip(stubs, solved, strict=True):
        assert "not yet" in texts(before) and "correct" not in texts(before), before.source
        assert "correct" in texts(after) and "not yet" not in texts(after), f"{before.source}\n{texts(after)}"
    said = list(map(texts, code_cells(done)))
    assert said == said[: len(said) // times] * times


def test_a_script_made_of_a_notebook_needs_neither_ipython_nor_a_window(path):
    text = PythonExporter().from_filename(path)[0]
    compile(text, path.name, "exec")
    assert "get_ipython" not in text and "plt.show" not in text


def test_the_first_notebook_runs_as_a_script_without_a_warning(copy, tmp_path):
    (tmp_path / "script.py").write_text(PythonExporter().from_filename(PATHS[0])[0], encoding="utf-8")
    env = os.environ | QUICK | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=copy.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the setup cell, wherever it runs


@pytest.fixture
def setup(monkeypatch):
    """A function that runs a setup cell in a folder, naming a repository or none; returns where it ends."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(subprocess, "run", None)  # nothing is to be run

    def run(folder: Path, repository: str = "") -> Path:
        monkeypatch.chdir(folder)
        exec(SETTING.sub(f'REPOSITORY = "{repository}"', setup_cell(), count=1), names := {})
        assert names["DEVICE"] in ("cpu", "cuda") and callable(names["display"])
        return Path.cwd()

    return run


def test_setup_finds_the_project_from_any_folder_and_twice(setup, tmp_path):
    (tmp_path / "checkpoints").mkdir()  # as a run of `reproduce` leaves one
    for start in (ROOT, FOLDER / "checkpoints", ROOT / "aart_lib", tmp_path):
        assert setup(start) == FOLDER
        assert setup(Path.cwd()) == FOLDER


def test_colab_clones_once_and_needs_no_network_after_a_restart(setup, monkeypatch, tmp_path):
    runs = []

    def run(command, **options):
        runs.append(" ".join(command))
        if command[0] == "git":  # a small clone
            shutil.copytree(FOLDER, "aart/notebooks", ignore=shutil.ignore_patterns("*.ipynb", "*.safetensors"))
            Path("aart/aart_lib").mkdir()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr("aart_lib.runtime.start.find_spec", {}.get)  # nothing is installed
    notebooks = setup(tmp_path, "owner/name")
    assert notebooks == (tmp_path / "aart" / "notebooks").resolve()
    for start in (tmp_path, notebooks, notebooks.parent):  # restarted; run again; started inside
        assert setup(start, "owner/name") == notebooks
    assert setup(tmp_path, "") == notebooks
    assert sum(run.startswith("git ") for run in runs) == 1 and str(notebooks.parent) in sys.path
    assert "accelerate" in runs[1] and not {"torch", "numpy"} & {*" ".join(runs).split()}, "Colab's own must stay"
    assert setup(ROOT) == FOLDER and str(ROOT) in sys.path  # a clone whose library is not installed


def test_a_setup_cell_without_the_library_says_what_to_do(tmp_path):
    (tmp_path / "setup.py").write_text(setup_cell(), encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", "-S", "setup.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "Set REPOSITORY above, or start Jupyter in the project" in done.stderr
