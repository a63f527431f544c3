"""report.py and figures.py: what the report says follows from the numbers, whoever is ahead."""

import json
import re
import runpy
from pathlib import Path

import pytest

from aart_lib.experiment import figures
from aart_lib.experiment.flags import CHECKS
from aart_lib.experiment.report import COLUMNS, insert_results, table, write_report
from aart_lib.experiment.suites import suite
from aart_lib.experiment.summary import read_results, summarize
from aart_lib.threats import ThreatModel

GAPS = {"standard": (0.95, 0.70), "adversarial": (0.94, 0.80), "trades": (0.93, 0.86), "a-art": (0.92, 0.84)}
OTHERS = [name for name in GAPS if name != "a-art"]
DRIFT = {"standard": 0.3, "adversarial": 0.2, "trades": 0.1, "a-art": 0.15}


def a_row(name: str, seed: int, clean: float, worst: float, strong: bool) -> dict:
    def gap(lost):
        return {"gap": clean - lost * (clean - worst)}

    def beyond(factor, frames=None):
        return {"threat": {"norm": "linf", "epsilon": 0.04 * factor, "max_frames": frames}}

    attacked = {"noise": gap(0.05), "fgsm": gap(0.8), "pgd": gap(0.9)}
    other = {"pgd@2": beyond(2) | gap(1.5), "worst@2": beyond(2) | gap(1.6), "frames-1": beyond(8, 1) | gap(1.1)}
    if strong:
        attacked |= {"apgd": gap(1.0 if name != "trades" else 0.95), "adaptive-start": gap(0.93)}
        attacked |= {f"transfer-{of}": gap(0.3) for of in GAPS if of != name}
        attacked["pgd-margin"] = gap(1.0 if name == "trades" else 0.7)
        attacked["gradient-free"] = gap(0.89) | {"videos": 200, "same_videos": {"gap": 0.876, "pgd": 0.765}}
        other |= {f"curve@{f}": beyond(f) | gap(f / 2) for f in (0.5, 1.5, 3, 4)}
        other["curve@8"] = beyond(8) | {"gap": 0.0}
        other |= {"frames-2": beyond(8, 2) | gap(1.3), "frames-1-random": beyond(8, 1) | gap(0.9)}
    return {
        **{"defense": name, "seed": seed, "train_seconds": 1.0},
        **{"clean": {"gap": clean}, "attacked": attacked, "worst": {"gap": worst}, "other": other},
        **{"attention_drift": DRIFT[name], "attention_entropy": 0.7, "attention_hijacked": 0.25},
        "steady_attention": {"gap": worst + 0.03, "gap@2": worst - 0.1},
        "evidence_share": {"clean": 0.6, "attacked": 0.5, "chance": 0.3},
        "history": [{"epoch": e, "clean": 0.4 * e, "attacked": 0.3 * e} for e in (1, 2)],
    }


def compared(difference: float, low: float, high: float) -> list[dict]:
    about = {"of": "a-art", "difference": difference, "ci95": [low, high], "p": 0.01, "p_holm": 0.03}
    return [about | {"with": name, "measure": m} for m in ("worst", "worst@2", "frames-1") for name in OTHERS]


def a_flag(name: str, raised: bool) -> dict:
    about = {"name": name, "defense": "trades", "raised": raised, "value": 0.1234, "seed": 1}
    return about | {"threshold": 0.02, "meaning": "who knows the defense does better"}


def results_of(gaps=GAPS, *, seeds=2, strong=True, **more) -> dict:
    rows = [a_row(n, s, c, w + 0.01 * s, strong and s == 0) for n, (c, w) in gaps.items() for s in range(seeds)]
    videos = {"train": 300, "validation": 50, "test": 100}
    return {
        "data": {"name": "synthetic", "labels": [0, 1], "videos": videos, "settings_hash": "0", "variant": "default"},
        "threat": {"norm": "linf", "epsilon": 0.04, "epsilon_levels": 2.55, "calibration": None},
        "rows": rows,
        "summary": summarize(rows, {name: [0.7, 0.9] for name in gaps}),
        "comparisons": compared(0.02, 0.01, 0.03),
        "ceiling": [{"epsilon": e, "gap": g} for e, g in ((0.0, 0.99), (0.04, 0.85), (0.08, 0.6))],
        "flags": [a_flag("adaptive-ahead", False)],
    } | more


@pytest.fixture
def drawn(tmp_path):
    """A function that writes the report of results and returns its text."""

    def written(results, name="report.md"):
        write_report(results, tmp_path, name)
        return (tmp_path / name).read_text()

    return written


@pytest.fixture
def report(drawn, monkeypatch):
    """The same without figures, which take a second each."""
    monkeypatch.setattr("aart_lib.experiment.report.draw", lambda *_: {})
    return drawn


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_table_has_a_cell_for_every_column_and_the_numbers_of_the_summary():
    summary = results_of()["summary"]
    lines = [cells(line) for line in table(summary).splitlines()]
    assert {len(line) for line in lines} == {len(COLUMNS)} and [line[0] for line in lines[2:]] == list(GAPS)
    a_art = dict(zip(lines[0], lines[5], strict=True))
    assert a_art["worst at ε"] == "**0.845** (0.700–0.900)"
    assert a_art["worst at 2ε"] == f"{summary['a-art']['worst@2_gap']:.3f}" and a_art["hijacked"] == "0.25"
    assert lines[5][5] == f"{summary['a-art']['recovered_share']:.0%}"
    assert lines[5][9] == f"{summary['a-art']['recovered_share_frames-1']:.0%}"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_results_go_between_their_marks_and_nowhere_else(tmp_path, end):
    readme, results = tmp_path / "README.md", results_of()
    readme.write_text("ä\n<!-- results:synthetic -->\nold\n<!-- end -->\nb\n", encoding="utf-8", newline=end)
    insert_results(readme, results)
    text = readme.read_text(encoding="utf-8")
    assert readme.read_bytes().count(end.encode()) == text.count("\n")
    assert text.startswith("ä\n") and text.endswith("<!-- end -->\nb\n") and "old" not in text
    assert table(results["summary"]) in text
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the table"):
        insert_results(readme, results)


@pytest.mark.parametrize("strong", [True, False])
def test_few_frames_are_chosen_as_the_suite_chooses_them_and_with_the_budget_of_their_row(report, strong):
    text = report(results_of(strong=strong))
    _, beyond = suite("strong" if strong else "standard", ThreatModel("linf", 0.04))
    assert beyond["frames-1"].frames == "trial" and "ε = 0.32, chosen by trial" in section(text, "Attacks")
    assert ("or as the row says" in text) == strong and "chosen by gradient" not in text
    assert "within 8 times ε" in text
    assert ("on 200 videos only" in text and "trades 0.876 beside 0.765" in text) == strong


@pytest.mark.parametrize(
    "low, high, words",
    [(0.01, 0.03, "A-ART is ahead of"), (-0.03, -0.01, "A-ART is behind"), (-0.01, 0.01, "includes zero for")],
)
def test_the_sentence_about_an_interval_matches_it(report, low, high, words):
    results = results_of(comparisons=compared((low + high) / 2, low, high))
    said = section(report(results), "A-ART against each other defense")
    assert [word for word in ("A-ART is ahead of", "A-ART is behind", "includes zero for") if word in said] == [words]
    assert f"({low:+.3f} to {high:+.3f}), p 0.030" in said
    one_seed = report(results_of(seeds=1, comparisons=[]))
    assert "Nothing is compared" in section(one_seed, "A-ART against each other defense")


def test_a_raised_flag_is_shown_with_its_value_and_every_check_once(report):
    flags = [a_flag("adaptive-ahead", True), a_flag("label-leaking", False)]
    said = section(report(results_of(flags=flags)), "Reasons to disbelieve")
    shown, _, folded = said.partition("<details>")
    assert "**adaptive-ahead**" in shown and "0.123" in shown and "trades seed 1" in shown and "0.02" in shown
    assert "label-leaking" not in shown
    for check in CHECKS:
        assert folded.count(f"| {check.name} |") == 1


@pytest.mark.parametrize("first", ["trades", "a-art", "standard"])
def test_texts_stay_true_whoever_is_first(report, first):
    results = results_of(GAPS | {first: (0.95, 0.91)})
    text = report(results)
    ceiling = re.search(r"Above it at ε: (.*)\.", text)[1]
    above = {name for name, s in results["summary"].items() if s["worst_gap"] > 0.85}
    assert first in above and set(ceiling.split(", ")) == above
    ranked = sorted(GAPS, key=lambda n: -results["summary"][n]["worst_gap"])
    assert f"from {first} than from {ranked[1]}" in section(text, "What would change our mind")
    assert 3 <= section(text, "What would change our mind").count("\n- ") <= 6
    title = figures._bars(results)[1]
    assert ("no defense keeps a higher GAP" in title) == (first == "standard")


@pytest.mark.parametrize("strong", [True, False])
def test_what_one_evaluation_left_has_a_report(tmp_path, strong):
    """One row of any seed, and nothing of what only a whole run computes: no flags, no ceiling, no evidence."""
    results = results_of({"trades": (0.93, 0.86)}, strong=strong, seeds=1)
    results["rows"][0] |= {"seed": 3, "history": [], "evidence_share": None}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({key: results[key] for key in ("data", "threat", "rows")}))
    write_report(read_results(path), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Seeds: 3." in text and "| trades | 0.930 |" in text and "nan" not in text
    assert ("pgd-margin" in section(text, "Attacks")) == strong and "Matched filter" not in text


@pytest.mark.parametrize("key", ["worst", "steady_attention", "seed"])
def test_results_of_an_older_version_name_what_they_lack(tmp_path, key):
    results = results_of()
    del results["rows"][1][key]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"results\.json is no results\.json of this version: it lacks rows {key}"):
        read_results(tmp_path / "results.json")


def test_every_picture_is_drawn_named_after_the_report_and_has_alternative_text(drawn, tmp_path):
    text = drawn(results_of(), "report-short.md")
    shown = re.findall(r"!\[(.*)\]\((.*)\)", text)
    keys = ("table", "drift", "evidence", "attacks", "epsilon", "training")
    assert [name for _, name in shown] == [f"short-{key}.png" for key in keys]
    assert all(len(about) > 40 for about, _ in shown)
    assert {path.name for path in tmp_path.glob("*.png")} == {name for _, name in shown}


def test_the_committed_table_of_worlds_is_what_its_results_say():
    where = Path(__file__).resolve().parents[2] / "figures"
    code = runpy.run_path(str(where / "staircase.py"))
    worlds = {name: json.loads((where / f"results-{name}.json").read_text(encoding="utf-8")) for name in code["WORLDS"]}
    lines = (where / "worlds.md").read_text(encoding="utf-8").splitlines()
    for world in worlds.values():
        assert set(code["world_table"](world["rows"])) <= set(lines)
    votes = {name: json.loads((where / f"voting-{name}.json").read_text(encoding="utf-8")) for name in code["VOTES"]}
    assert set(code["term_table"]({name: world["rows"] for name, world in worlds.items()})) <= set(lines)
    assert set(code["vote_table"]({name: found["rows"] for name, found in votes.items()})) <= set(lines)
