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

FIGURES = Path(__file__).resolve().parents[2] / "figures"
NAMES = ["standard", "adversarial", "trades", "a-art"]
AGAINST_OTHERS = "A-ART against each other defense"


@pytest.fixture
def results() -> dict:
    """Of the committed results four defenses and two seeds, of which the first met the strong suite."""
    found = read_results(FIGURES / "results-synthetic.json")
    rows = [row for row in found["rows"] if row["seed"] < 2 and row["defense"] in NAMES]
    return found | {"rows": rows, "summary": summarize(rows, {name: [0.7, 0.9] for name in NAMES})}


def without_strong_suite(rows: list[dict]) -> list[dict]:
    kept = {"noise", "fgsm", "pgd", "pgd@2", "worst@2", "frames-1"}
    return [
        row | {part: {key: gap for key, gap in row[part].items() if key in kept} for part in ("attacked", "other")}
        for row in rows
    ]


def compared(low: float, high: float) -> list[dict]:
    about = {"of": "a-art", "difference": (low + high) / 2, "ci95": [low, high], "p": 0.01, "p_holm": 0.03}
    return [about | {"with": name, "measure": m} for m in ("worst", "worst@2", "frames-1") for name in NAMES[:3]]


@pytest.fixture
def report(tmp_path, no_figures):
    """A function that writes the report of results, without figures, and returns its text."""

    def written(results) -> str:
        write_report(results, tmp_path)
        return (tmp_path / "report.md").read_text()

    return written


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_table_has_a_cell_for_every_column_and_the_numbers_of_the_summary(results):
    lines = [cells(line) for line in table(results["summary"]).splitlines()]
    assert {len(line) for line in lines} == {len(COLUMNS)} and [line[0] for line in lines[2:]] == NAMES
    a_art, said = results["summary"]["a-art"], dict(zip(lines[0], lines[5], strict=True))
    assert said["worst at ε"] == f"**{a_art['worst_gap']:.3f}** (0.700–0.900)"
    assert said["worst at 2ε"] == f"{a_art['worst@2_gap']:.3f}"
    assert said["hijacked"] == f"{a_art['attention_hijacked']:.2f}"
    assert (
        lines[5][5] == f"{a_art['recovered_share']:.0%}" and lines[5][9] == f"{a_art['recovered_share_frames-1']:.0%}"
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_results_go_between_their_marks_and_nowhere_else(tmp_path, results, end):
    readme = tmp_path / "README.md"
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
def test_few_frames_are_chosen_as_the_suite_chooses_them_and_with_the_budget_of_their_row(report, results, strong):
    if not strong:
        results["rows"] = without_strong_suite(results["rows"])
    text, epsilon = report(results), results["threat"]["epsilon"]
    _, beyond = suite("strong" if strong else "standard", ThreatModel("linf", epsilon))
    assert beyond["frames-1"].frames == "trial"
    assert f"ε = {8 * epsilon:.4g}, chosen by trial" in section(text, "Attacks") and "within 8 times ε" in text
    assert ("or as the row says" in text) == strong and "chosen by gradient" not in text
    assert ("on 200 videos only" in text and bool(re.search(r"trades 0\.\d+ beside 0\.\d+", text))) == strong


@pytest.mark.parametrize(
    "low, high, words",
    [(0.01, 0.03, "A-ART is ahead of"), (-0.03, -0.01, "A-ART is behind"), (-0.01, 0.01, "includes zero for")],
)
def test_the_sentence_about_an_interval_matches_it(report, results, low, high, words):
    said = section(report(results | {"comparisons": compared(low, high)}), AGAINST_OTHERS)
    assert [word for word in ("A-ART is ahead of", "A-ART is behind", "includes zero for") if word in said] == [words]
    assert f"({low:+.3f} to {high:+.3f}), p 0.030" in said
    assert "Nothing is compared" in section(report(results | {"comparisons": []}), AGAINST_OTHERS)


def test_a_raised_flag_is_shown_with_its_value_and_every_check_once(report, results):
    about = {"defense": "trades", "value": 0.1234, "seed": 1, "threshold": 0.02, "meaning": "who knows it does better"}
    flags = [about | {"name": "adaptive-ahead", "raised": True}, about | {"name": "label-leaking", "raised": False}]
    said = section(report(results | {"flags": flags}), "Reasons to disbelieve")
    shown, _, folded = said.partition("<details>")
    assert "**adaptive-ahead**" in shown and "0.123" in shown and "trades seed 1" in shown and "0.02" in shown
    assert "label-leaking" not in shown
    for check in CHECKS:
        assert folded.count(f"| {check.name} |") == 1


@pytest.mark.parametrize("first", ["trades", "a-art", "standard"])
def test_texts_stay_true_whoever_is_first(report, results, first):
    for row in results["rows"]:
        if row["defense"] == first:
            row |= {"clean": {"gap": 1.0}, "worst": {"gap": 0.999}}
    summary, epsilon = summarize(results["rows"]), results["threat"]["epsilon"]
    results |= {"summary": summary, "ceiling": [{"epsilon": 0.0, "gap": 0.99}, {"epsilon": epsilon, "gap": 0.9}]}
    text = report(results)
    above = {name for name in NAMES if summary[name]["worst_gap"] > 0.9}
    assert first in above and set(re.search(r"Above it at ε: (.*)\.", text)[1].split(", ")) == above
    ranked = sorted(NAMES, key=lambda name: -summary[name]["worst_gap"])
    said = section(text, "What would change our mind")
    assert f"from {first} than from {ranked[1]}" in said and 3 <= said.count("\n- ") <= 6
    assert ("no defense keeps a higher GAP" in figures._bars(results)[1]) == (first == "standard")


@pytest.mark.parametrize("strong", [True, False])
def test_what_one_evaluation_left_has_a_report(tmp_path, results, request, strong):
    """One row of any seed, and nothing of what only a whole run computes: no flags, no ceiling, no evidence."""
    (row,) = (row for row in results["rows"] if (row["defense"], row["seed"]) == ("trades", 0))
    row |= {"seed": 3, "history": [], "evidence_share": None}
    if strong:  # its figures are drawn elsewhere
        request.getfixturevalue("no_figures")
    rows, path = [row] if strong else without_strong_suite([row]), tmp_path / "results.json"
    path.write_text(json.dumps({"data": results["data"], "threat": results["threat"], "rows": rows}))
    write_report(read_results(path), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Seeds: 3." in text and f"| trades | {row['clean']['gap']:.3f} |" in text and "nan" not in text
    assert ("pgd-margin" in section(text, "Attacks")) == strong and "Matched filter" not in text


@pytest.mark.parametrize("key", ["worst", "steady_attention", "seed"])
def test_results_of_an_older_version_name_what_they_lack(tmp_path, results, key):
    del results["rows"][1][key]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"results\.json is no results\.json of this version: it lacks rows {key}"):
        read_results(tmp_path / "results.json")


def test_every_picture_is_drawn_named_after_the_report_and_has_alternative_text(tmp_path, results):
    write_report(results, tmp_path, "report-short.md")
    shown = re.findall(r"!\[(.*)\]\((.*)\)", (tmp_path / "report-short.md").read_text())
    keys = ("table", "drift", "evidence", "attacks", "epsilon", "training")
    assert [name for _, name in shown] == [f"short-{key}.png" for key in keys]
    assert all(len(about) > 40 for about, _ in shown)
    assert {path.name for path in tmp_path.glob("*.png")} == {name for _, name in shown}


def test_the_committed_table_of_worlds_is_what_its_results_say():
    code = runpy.run_path(str(FIGURES / "staircase.py"))
    worlds = {
        name: json.loads((FIGURES / f"results-{name}.json").read_text(encoding="utf-8")) for name in code["WORLDS"]
    }
    lines = (FIGURES / "worlds.md").read_text(encoding="utf-8").splitlines()
    for world in worlds.values():
        assert set(code["world_table"](world["rows"])) <= set(lines)
    votes = {name: json.loads((FIGURES / f"voting-{name}.json").read_text(encoding="utf-8")) for name in code["VOTES"]}
    assert set(code["term_table"]({name: world["rows"] for name, world in worlds.items()})) <= set(lines)
    assert set(code["vote_table"]({name: found["rows"] for name, found in votes.items()})) <= set(lines)
