"""reproduce.py and report.py: the summary by hand, and one tiny run from shards to figures that is not repeated."""

import json
import math
import statistics
from dataclasses import replace

import pytest

from aart_lib import reproduce as reproduction
from aart_lib import synthetic
from aart_lib.attacks import ThreatModel
from aart_lib.cli import main
from aart_lib.losses import DEFENSES, tuned
from aart_lib.records import write_json
from aart_lib.report import heading, table, write_report
from aart_lib.reproduce import PRESETS, open_data, preset_named, settings_hash, summarize

TINY = replace(synthetic.SETTINGS["default"], train_videos=60, test_videos=24, shard_size=60, frames=(3, 6))


def a_row(defense: str, seed: int, clean: float, worst: float, doubled: float = 0.3) -> dict:
    return {
        "defense": defense,
        "seed": seed,
        "clean": {"gap": clean},
        "attacked": {"pgd": {"gap": worst}},
        "worst": {"gap": worst},
        "other": {"pgd@2": {"gap": doubled}, "frames-1": {"gap": worst + 0.05}},
        "steady_attention": {"gap": worst + 0.02, "gap@2": doubled},
        "attention_drift": 0.2,
        "attention_entropy": 0.6,
        "evidence_share": {"clean": 0.5, "attacked": 0.4, "chance": 0.2},
        "train_seconds": 10.0 + seed,
    }


ROWS = [
    a_row("standard", 0, 0.90, 0.70),
    a_row("a-art", 0, 0.89, 0.80, 0.5),
    a_row("standard", 1, 0.92, 0.72),
    a_row("a-art", 1, 0.90, 0.77, 0.6),
    a_row("standard", 2, 0.91, 0.66),
    a_row("a-art", 2, 0.91, 0.81, 0.4),
]


# ---------------------------------------------------------------- summary


def test_summary_numbers_are_the_hand_computed_ones():
    found = summarize(ROWS)
    assert list(found) == ["standard", "a-art"]
    a_art = found["a-art"]
    assert a_art["clean_gap"] == pytest.approx(0.9) and a_art["worst_gap"] == pytest.approx((0.80 + 0.77 + 0.81) / 3)
    assert a_art["pgd@2_gap"] == pytest.approx(0.5) and a_art["frames-1_gap"] == pytest.approx(
        a_art["worst_gap"] + 0.05
    )
    assert a_art["evidence_attacked"] == pytest.approx(0.4) and a_art["train_seconds"] == pytest.approx(11)
    shares = [(0.80 - 0.70) / 0.20, (0.77 - 0.72) / 0.20, (0.81 - 0.66) / 0.25]  # baselines of the same seed
    assert a_art["recovered_share"] == pytest.approx(statistics.fmean(shares))
    assert a_art["recovered_share@2"] == pytest.approx(statistics.fmean([0.2 / 0.6, 0.3 / 0.62, 0.1 / 0.61]))
    assert found["standard"]["recovered_share"] == pytest.approx(0)


def test_the_interval_is_students_over_seeds_and_missing_with_one():
    worst = [0.80, 0.77, 0.81]
    half = 4.303 * statistics.stdev(worst) / math.sqrt(3)
    assert summarize(ROWS)["a-art"]["ci95"] == pytest.approx(
        [statistics.fmean(worst) - half, statistics.fmean(worst) + half]
    )
    assert summarize(ROWS[:2])["a-art"]["ci95"] is None


def test_nothing_is_recovered_where_there_is_no_baseline_or_nothing_was_lost():
    assert summarize(ROWS[1:2])["a-art"]["recovered_share"] is None
    unhurt = [a_row("standard", 0, 0.7, 0.7), a_row("a-art", 0, 0.7, 0.8)]
    assert summarize(unhurt)["a-art"]["recovered_share"] is None


def test_rows_without_evidence_have_none_in_the_summary():
    summary = summarize([row | {"evidence_share": None} for row in ROWS])
    assert not any(key.startswith("evidence") for key in summary["a-art"])
    assert "| – |" in table(summary)


def test_the_table_has_a_line_for_each_defense():
    lines = table(summarize(ROWS)).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "a-art" in lines[3] and "**0.793** (0.742–0.845)" in lines[3]


# ---------------------------------------------------------------- settings


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown preset 'huge'; known: quick, small, full"):
        preset_named("huge")
    with pytest.raises(ValueError, match="unknown data set 'imagenet'; known: synthetic, audioset"):
        open_data("imagenet")
    with pytest.raises(ValueError, match="audioset needs --data-dir"):
        open_data("audioset")


def test_presets_name_defenses_and_suites_that_exist():
    for preset in PRESETS.values():
        assert set(preset.defenses) <= set(DEFENSES) and "standard" in preset.defenses


def test_results_never_hold_what_other_readers_of_json_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"value": math.nan})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- from shards to figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    synthetic.write(TINY, folder)
    return folder


def command(folder, out, *more) -> list[str]:
    given = ["reproduce", "--data", "synthetic", "--data-dir", str(folder), "--out", str(out), "--preset", "quick"]
    return [*given, "--epochs", "2", "--defenses", "a-art", *more]


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(command(folder, out)) == 0
    return out


@pytest.fixture
def results(done) -> dict:
    return json.loads((done / "results.json").read_text())


def test_a_run_leaves_results_report_figures_and_checkpoints_and_nothing_half_done(done):
    names = {path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file()}
    assert names >= {
        "results.json",
        "report.md",
        "checkpoints/standard-seed0.safetensors",
        "checkpoints/a-art-seed0.safetensors",
    }
    assert not [name for name in names if name.endswith(".state") or "/." in name or name.startswith(".")]
    report = (done / "report.md").read_text()
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) >= 3 and all(f"({name})" in report for name in pictures)
    assert all((done / name).stat().st_size > 5000 for name in pictures)


def test_results_have_the_layout_that_others_read(results):
    assert set(results) >= {"data", "threat", "rows", "summary", "flags"}
    assert set(results["data"]) >= {"name", "labels", "videos", "settings_hash"}
    assert set(results["data"]["videos"]) >= {"train", "validation", "test"}
    assert (results["data"]["videos"]["train"], results["data"]["videos"]["validation"]) == (30, 30)
    assert set(results["threat"]) >= {"norm", "epsilon", "epsilon_levels", "calibration"}
    assert set(results["threat"]["calibration"]) >= {"target_ratio", "reached", "seed", "attack"}
    assert results["threat"]["epsilon_levels"] == pytest.approx(results["threat"]["epsilon"] * 255 / 4)
    assert [row["defense"] for row in results["rows"]] == ["standard", "a-art"]  # the baseline is always there
    for row in results["rows"]:
        assert set(row) >= {
            *("defense", "seed", "clean", "attacked", "worst", "other", "attention_drift", "attention_drift_all"),
            *("attention_entropy", "steady_attention", "evidence_share", "train_seconds"),
        }
        assert row["worst"]["gap"] <= min(result["gap"] for result in row["attacked"].values())
    for summary in results["summary"].values():
        assert set(summary) >= {"clean_gap", "worst_gap", "recovered_share", "ci95"}
    for flag in results["flags"]:
        assert set(flag) >= {"name", "defense", "raised", "value", "threshold", "meaning"}


def test_results_name_the_data_they_are_of(results, folder):
    splits = open_data("synthetic", folder)
    assert settings_hash(splits) == results["data"]["settings_hash"]
    assert results["data"]["settings_hash"] != synthetic.settings_hash(synthetic.SETTINGS["default"])


def test_the_report_is_drawn_from_the_results_alone(results, done, tmp_path):
    text = write_report(results, tmp_path)
    assert (tmp_path / "report.md").read_text() == (done / "report.md").read_text()
    assert table(results["summary"]) in text and heading(results) in text
    assert "stands in for YouTube-8M" in heading(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path / "results.json"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.md").exists()


def test_a_resumed_run_neither_trains_nor_evaluates_again(done, folder, results, monkeypatch, capsys):
    times = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
    assert len(times) == 2
    for name in ("train", "evaluate", "calibrate"):
        monkeypatch.setattr(reproduction, name, lambda *a, name=name, **o: pytest.fail(f"{name} ran again"))
    assert main(command(folder, done, "--resume")) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    again = json.loads((done / "results.json").read_text())
    assert again["rows"] == results["rows"] and again["threat"] == results["threat"]


def test_without_resume_a_run_is_not_overwritten(done, folder, capsys):
    before = (done / "results.json").read_bytes()
    assert main(command(folder, done)) == 2
    assert "is not empty; add --resume" in capsys.readouterr().err
    assert (done / "results.json").read_bytes() == before


def test_other_settings_train_again_and_a_given_epsilon_is_used(done, folder, tmp_path, monkeypatch):
    trained = []
    original = reproduction.train
    monkeypatch.setattr(reproduction, "train", lambda d, *a, **o: trained.append(d) or original(d, *a, **o))
    preset = replace(PRESETS["quick"], epochs=1)
    splits = open_data("synthetic", folder)
    found = reproduction.reproduce(
        splits, tmp_path, preset=preset, defenses=["adversarial"], threat=ThreatModel("l2-clip", 0.5), progress=False
    )
    assert trained == [tuned("synthetic", name)[0] for name in ("standard", "adversarial")]
    assert found["threat"]["norm"] == "l2-clip" and found["threat"]["calibration"]["reached"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))


def test_an_unknown_defense_is_told_before_anything_is_trained(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown defense 'magic'"):
        reproduction.reproduce(open_data("synthetic", folder), tmp_path / "x", defenses=["magic"])
    assert not (tmp_path / "x").exists()
