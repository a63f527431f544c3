"""A program that tests the tests: it makes one small mistake at a time in a module, and some test must fail of it.

    python tests/tools/mutants.py metrics attacks losses      # every mutant, needs `pip install mutmut==3.8.1`
    python tests/tools/mutants.py attacks --only 17,230       # these alone, with what pytest says of them

The mistakes are mutmut's: another operator, number or text, an argument left out or None, a value not assigned, one
branch of a choice alone. mutmut itself passes over what stands outside of a function (here objectives, divergences and
defenses do) and below a decorator; this program mutates whole modules, annotations and docstrings aside.

A mutant that fails no test survives and is printed: read whether it can be found (an equal value, only time or memory:
it cannot). The libraries are imported once, and every mutant is tried in a fork (Linux, macOS): minutes, not hours.
"""

import argparse
import difflib
import importlib
import importlib.util
import os
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, WhitespaceInclusivePositionProvider
from mutmut.mutation.mutators import mutation_operators

TESTS = Path(__file__).resolve().parents[1]
SUITES = {  # the tests of a module
    "metrics": ("test_metrics.py",),
    "attacks": ("test_attacks.py",),
    "losses": ("test_losses.py", "experiment/test_tune.py"),
}
MEMORY = 8 * 2**30  # bytes of addresses a mutant may take


class Mutations(cst.CSTVisitor):
    """Every node of a module that can be changed: where it stands, and what it is changed into."""

    METADATA_DEPENDENCIES = (WhitespaceInclusivePositionProvider,)

    def __init__(self):
        super().__init__()
        self.found = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                place = self.get_metadata(WhitespaceInclusivePositionProvider, node)
                self.found += [(place.start, place.end, changed) for changed in operator(node)]
        return True


def mutants(source: str) -> list[tuple[int, str]]:
    """The mutants of a module in the order of its lines: line, mutated source."""
    module = MetadataWrapper(cst.parse_module(source))
    visitor, made, starts = Mutations(), [], [0]
    module.visit(visitor)
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for start, end, changed in visitor.found:
        before, after = (starts[place.line - 1] + place.column for place in (start, end))
        made.append((start.line, source[:before] + module.module.code_for_node(changed) + source[after:]))
    return sorted(((line, text) for line, text in made if text != source), key=lambda made: made[0])


def difference(source: str, mutated: str) -> str:
    """`old → new`, the lines that differ without their indentation and comments."""
    lines = list(difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm=""))[2:]
    sides = (" ".join(line[1:].split("  # ")[0].strip() for line in lines if line[0] == sign) for sign in "-+")
    return " → ".join(sides)


def path_of(module: str) -> Path:
    return TESTS.parent / "aart_lib" / f"{module}.py"


def put(module: str, text: str) -> None:
    """Make a text the module that everybody imports from now on."""
    spec = importlib.util.spec_from_file_location(f"aart_lib.{module}", path_of(module))
    sys.modules[spec.name] = made = importlib.util.module_from_spec(spec)
    exec(compile(text, spec.origin, "exec"), made.__dict__)


class FirstFailure:
    """Tells pytest to end with the first test that fails: the end of its run takes longer than most mutants live."""

    def pytest_collection(self):
        """After conftest.py: a failure is enough, no example of it need be small."""
        from hypothesis import Phase, settings

        settings.register_profile("mutants", settings(), phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            print(report.nodeid, report.longreprtext, sep="\n", flush=True)
            os._exit(1)


def survives(module: str, text: str, seconds: float, loud: bool = False) -> bool | None:
    """Whether all tests of a module pass with this text in its place; None if they take too long."""
    if not (child := os.fork()):
        code = 1
        try:
            signal.alarm(int(seconds))  # it ends this process
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            if not loud:
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, 1), os.dup2(sink, 2)
            put(module, text)
            code = pytest.main(
                ["-p", "no:cacheprovider", *(str(TESTS / name) for name in SUITES[module])], [FirstFailure()]
            )
        finally:
            os._exit(int(code))
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else status == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", choices=SUITES, metavar="module", help=", ".join(SUITES))
    parser.add_argument("--only", type=lambda text: {int(n) for n in text.split(",")}, help="numbers of mutants")
    parser.add_argument("--timeout", type=float, default=10, help="times what the tests take without a mutant")
    options = parser.parse_args()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # their import takes longer than most mutants live
    for library in ("hypothesis.strategies", "numpy", "seaborn", "torch"):  # for the forks, none of aart_lib
        importlib.import_module(library)
    for module in options.modules:
        source, begun, counts = path_of(module).read_text(encoding="utf-8"), time.monotonic(), Counter()
        if not survives(module, source, 600):
            raise SystemExit(f"the tests of {module} fail without a mutant: {', '.join(SUITES[module])}")
        most = 5 + options.timeout * (time.monotonic() - begun)
        for number, (line, text) in enumerate(mutants(source)):
            if options.only and number not in options.only:
                continue
            outcome = survives(module, text, most, loud=bool(options.only))
            counts[{True: "survived", False: "killed", None: "too slow"}[outcome]] += 1
            if outcome:
                print(f"survived {module} {number}, line {line}: {difference(source, text)}", flush=True)
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        share = 1 - counts["survived"] / max(counts.total(), 1)
        print(f"{module}: {found}: {share:.1%} found, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
