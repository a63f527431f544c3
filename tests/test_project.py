"""The project's own rules: one list of dependencies, the order of imports, the size of files, nobody's home folder."""

import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "aart_lib").rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(ROOT / "aart_lib").with_suffix("").parts) for path in MODULES}
# A module may import only modules that stand before it.
ORDER = (
    "runtime.start runtime.files runtime.signals runtime.processes runtime.jobs "
    "data.batch data.exact data.foreign data.records data.formats data.index data.tensors data.dataset data.synthetic "
    "data.vocabulary data.catalog data.describe data.download "
    "data.pictures data.extractor data.pixels data.sources data.films "
    "metrics model attention losses threats objectives attacks scoring checkpoint steps training "
    "viz.style viz.film viz.plots viz.explorer viz.page "
    "experiment.recipes experiment.presets experiment.suites experiment.judge experiment.flags experiment.uncertainty "
    "experiment.ceiling experiment.summary experiment.reproduce experiment.figures experiment.report "
    "cli.asked cli.commands cli.parser"
).split()
FREE = {"__main__", *(name for name in NAMES.values() if name.endswith("__init__"))}  # they hand names on
FILE_LIMIT, CORE_LIMIT, LIBRARY_LIMIT = 250, 1300, 5974  # lines of code
NOT_CODE = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def ranges(lines) -> dict:
    """{package: version range} of requirement lines."""
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def test_conda_environment_names_the_same_packages_and_ranges(project):
    dependencies = yaml.safe_load(read("environment.yml"))["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip[-1] == "-e ."
    assert ranges(pip[:-1]) == ranges(project["dependencies"])
    assert f"python{project['requires-python']}" in dependencies


def test_every_dependency_is_pinned_within_its_range(project):
    lines = [line for line in read("requirements.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    pins = ranges(lines)
    wanted = ranges(sum(project["optional-dependencies"].values(), project["dependencies"]))
    for name, allowed in wanted.items():
        (pin,) = pins[name]
        assert pin.operator == "==" and allowed.contains(pin.version), f"{name}: {pin} is not in {allowed}"


def test_workflow_runs_what_ci_runs_on_every_python_and_may_only_read(project):
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", used) for used in re.findall(r"uses: (\S+)", text))
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert [step["run"] for step in workflow["jobs"]["pinned"]["steps"] if "run" in step] == [".ci/run"]
    assert re.findall(r"^make .*", read(".ci/run"), re.MULTILINE) == ["make lint", "make test"]
    pinned, ranges = (workflow["jobs"][job]["strategy"]["matrix"] for job in ("pinned", "ranges"))
    pythons = {*pinned["python"], *(entry["python"] for entry in ranges["include"])}
    assert {"3.10", "3.11", "3.12", "3.13"} <= pythons
    assert all(SpecifierSet(project["requires-python"]).contains(python) for python in pythons)


def test_readme_names_only_commands_that_the_makefile_has():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\s*)make ([a-z]+)", read("README.md"), re.MULTILINE))
    assert {"reproduce", "test", "lab", "figures", "checkpoints", "bench", "lint"} <= targets
    assert {"reproduce", "test"} <= named <= targets


def imported_modules(source: str) -> set[str]:
    """Names of the aart_lib modules that a module of aart_lib imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(filter(None, ["aart_lib" if node.level else "", node.module]))
            found |= {package} | {f"{package}.{alias.name}" for alias in node.names}
    return {name.removeprefix("aart_lib.") for name in found} & {*NAMES.values()}


def code_lines(source: str) -> int:
    """Lines of code: docstrings, comments and blank lines are not counted."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] not in NOT_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_modules_import_only_modules_above_them():
    for path, name in NAMES.items():
        if name not in FREE:
            assert name in ORDER, f"{name} has no place in the order {ORDER}"
            below = imported_modules(path.read_text(encoding="utf-8")) - {*ORDER[: ORDER.index(name)], name}
            assert not below, f"{name} imports {sorted(below)}, which do not stand above it"


def test_library_and_files_keep_their_line_budget():
    sizes = {name: code_lines(path.read_text(encoding="utf-8")) for path, name in NAMES.items()}
    assert sum(sizes.values()) <= LIBRARY_LIMIT, sizes
    assert sum(size for name, size in sizes.items() if "." not in name) <= CORE_LIMIT, sizes
    assert {name: size for name, size in sizes.items() if size > FILE_LIMIT} == {}


def test_import_of_the_library_stays_light():
    heavy = "matplotlib seaborn pandas ipywidgets IPython jupyterlab accelerate torch"
    program = f"import aart_lib, sys; print(*(name for name in {heavy.split()!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_public_names_mean_one_thing_whatever_was_imported_before():
    program = f"""
import importlib, sys, types
modules = {[f"aart_lib.{name}" for name in NAMES.values() if "__" not in name]!r}
for imported in ([], modules):
    for name in [name for name in sys.modules if name.split(".")[0] == "aart_lib"]:
        del sys.modules[name]
    for module in imported:
        importlib.import_module(module)
    space = {{}}
    exec("from aart_lib import *", space)
    found = {{name for name, value in space.items() if isinstance(value, types.ModuleType)}}
    assert found == sys.modules["aart_lib"]._MODULES, found ^ sys.modules["aart_lib"]._MODULES
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "torch.hub.load", "torch.jit.load"}
SAFE_WITH = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}


def unsafe_calls(source: str) -> list[str]:
    """Imports and calls that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += {getattr(node, "module", None), *(alias.name for alias in node.names)} & UNSAFE_MODULES
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), [ast.unparse(option) for option in node.keywords]
            unsafe = name in UNSAFE_CALLS or (name in SAFE_WITH and SAFE_WITH[name] not in options)
            unpacks = name.endswith((".extractall", ".extract"))  # archives name their own paths
            if unsafe or unpacks or "shell=True" in options:
                found.append(name)
    return found


def test_the_search_for_unsafe_calls_finds_them():
    safe = "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nmodel.eval()\nre.compile('a')"
    assert unsafe_calls(safe) == []
    for line in (
        "import pickle", "from pickle import loads", "eval('1')", "exec(code)", "torch.load(f)", "np.load(f)",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "tar.extractall(path)",
        "subprocess.run(line, shell=True)",
    ):  # fmt: skip
        assert len(unsafe_calls(line)) == 1, line


def test_no_module_has_a_way_to_run_what_it_reads():
    found = {name: unsafe_calls(path.read_text(encoding="utf-8")) for path, name in NAMES.items()}
    # What a process sends to its own children; no file.
    assert {name: calls for name, calls in found.items() if calls} == {"runtime.jobs": ["cloudpickle"]}
    # Of the run's own state alone.
    assert [name for path, name in NAMES.items() if "torch.load" in path.read_text("utf-8")] == ["runtime.files"]


def test_no_file_names_a_folder_of_one_machine():
    home = re.compile(r"(?<![\w.:/-])/(?:root|work|home/\w+|Users/\w+)/|\.\./shared|[A-Z]:\\\\?Users\\")
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git, or not a git checkout: the list of tracked files is unknown")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() and path != Path(__file__) else b""
        if b"\0" not in data:
            found += [(name, line) for line in data.decode("utf-8", "replace").splitlines() if home.search(line)]
    # one line says where continuous integration finds genuine shards
    assert [name for name, _ in found] in ([], [".ci/run"]), found
