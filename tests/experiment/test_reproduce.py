"""reproduce.py: a tiny run from shards to figures that is not repeated, and the committed results."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aart_lib.attacks import ThreatModel, pgd
from aart_lib.cli.parser import main
from aart_lib.data.catalog import open_data, settings_hash
from aart_lib.experiment import reproduce as reproduction
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.recipes import tuned
from aart_lib.experiment.reproduce import three_worst
from aart_lib.experiment.suites import suite
from aart_lib.experiment.summary import MEASURES
from aart_lib.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["standard", "a-art"]


def test_results_never_hold_what_other_readers_of_json_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"value": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(written):
    return written(train_videos=60, test_videos=24, shard_size=60, frames=(3, 6))


def command(folder, out, *more) -> list[str]:
    given = ["reproduce", "--data", "synthetic", "--data-dir", str(folder), "--out", str(out), "--preset", "quick"]
    given += ["--suite", "strong", "--epochs", "2", "--seeds", "2", "--test-videos", "12", "--defenses", "a-art"]
    return [*given, *more]


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory, shorten):
    """The folder of a run whose attacks have few steps."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr("aart_lib.experiment.presets.pgd", partial(pgd, steps=3, restarts=1))  # of the calibration
        assert main(command(folder, out)) == 0
    return out


@pytest.fixture
def results(done) -> dict:
    return json.loads((done / "results.json").read_text())


def test_a_run_leaves_results_report_figures_and_checkpoints_and_nothing_half_done(done):
    names = {path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file()}
    assert names >= {"results.json", "report.md"} | {
        f"checkpoints/{name}-seed{seed}.safetensors" for name in NAMES for seed in range(2)
    }
    assert not [name for name in names if name.endswith(".state") or "/." in name or name.startswith(".")]
    report = (done / "report.md").read_text()
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) >= 3 and all(f"({name})" in report for name in pictures)


def test_results_have_the_layout_that_others_read(results, folder):
    assert set(results) >= {"data", "threat", "rows", "summary", "flags"}
    data, threat = results["data"], results["threat"]
    assert set(data) >= {"name", "labels", "videos", "settings_hash"}
    assert (data["videos"]["train"], data["videos"]["validation"]) == (30, 30) and data["videos"]["test"]
    assert data["settings_hash"] == settings_hash(open_data("synthetic", folder))
    assert set(threat) >= {"norm", "epsilon", "epsilon_levels", "calibration"}
    assert set(threat["calibration"]) >= {"target_ratio", "reached", "seed", "attack"}
    assert threat["epsilon_levels"] == pytest.approx(threat["epsilon"] * 255 / 4)
    rows = [(row["defense"], row["seed"]) for row in results["rows"]]
    assert rows == [(name, seed) for seed in range(2) for name in NAMES]  # the baseline is always there
    assert all(set(row) >= {"defense", "seed", "train_seconds"} for row in results["rows"])  # beside what judging gives
    for summary in results["summary"].values():
        assert set(summary) >= {"clean_gap", "worst_gap", "recovered_share", "ci95"}
    for flag in results["flags"]:
        assert set(flag) >= {"name", "defense", "raised", "value", "threshold", "meaning"}


def test_seed_0_meets_every_attack_and_every_other_model(results):
    for row, other in zip(results["rows"], ("a-art", "standard"), strict=False):
        within, beyond = suite("strong", ThreatModel("linf", 0.05), surrogates=["other-seed", other])
        assert row["seed"] == 0 and set(row["attacked"]) == set(within)
        assert set(row["other"]) == {*beyond, "worst@2", "pgd-stored", "splice"}


def test_seed_1_meets_the_standard_attacks_and_the_three_worst_of_seed_0(results):
    rows = {(row["defense"], row["seed"]): row for row in results["rows"]}
    for name in NAMES:
        worst = three_worst(rows[name, 0])
        assert set(rows[name, 1]["attacked"]) == {"noise", "fgsm", "pgd", *worst} and len(worst) == 3
        assert {"pgd@2", "worst@2", "frames-1"} <= set(rows[name, 1]["other"]) < set(rows[name, 0]["other"])


def test_ours_is_compared_with_all_others_on_scores_that_are_kept(results, done):
    compared = {(c["of"], c["with"], c["measure"]) for c in results["comparisons"]}
    assert compared == {("a-art", "standard", measure) for measure in MEASURES}
    for name in NAMES:
        low, high = results["summary"][name]["ci95"]
        assert 0 <= low < high <= 1
        for seed in range(2):
            scores = load_file(done / "rows" / f"{name}-seed{seed}.safetensors")
            assert set(scores) == {"clean", "labels", *MEASURES}
            assert {tuple(values.shape) for values in scores.values()} == {(12, 40)}


def test_a_resumed_run_neither_trains_nor_evaluates_again(done, folder, results, monkeypatch, no_figures):
    times = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
    assert len(times) == 9  # checkpoints, one of them of another seed, and the scores behind the rows
    for name in ("train", "judge", "calibrate"):
        monkeypatch.setattr(reproduction, name, lambda *a, name=name, **o: pytest.fail(f"{name} ran again"))
    assert main(command(folder, done, "--resume")) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    again = json.loads((done / "results.json").read_text())
    assert again["rows"] == results["rows"] and again["threat"] == results["threat"]


def test_other_settings_train_again_and_a_given_epsilon_is_used(done, folder, tmp_path, monkeypatch):
    trained, original = [], reproduction.train
    monkeypatch.setattr(reproduction, "train", lambda d, *a, **o: trained.append(d) or original(d, *a, **o))
    options = {"preset": replace(PRESETS["quick"], epochs=1), "threat": ThreatModel("l2-clip", 0.5), "progress": False}
    found = reproduction.reproduce(open_data("synthetic", folder), tmp_path, defenses=["adversarial"], **options)
    assert trained == [tuned("synthetic", name)[0] for name in ("standard", "adversarial")]
    assert found["threat"]["norm"] == "l2-clip" and found["threat"]["calibration"]["reached"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))


def test_the_three_worst_are_the_lowest_beside_what_every_row_meets():
    low = {"noise": 0.1, "fgsm": 0.1, "pgd": 0.1, "gradient-free": 0.1, "pgd-100": 0.1}
    gaps = low | {"apgd": 0.4, "pgd-margin": 0.3, "transfer-x": 0.6, "adaptive-start": 0.35, "label-free": 0.5}
    row = {"attacked": {name: {"gap": gap} for name, gap in gaps.items()}}
    assert three_worst(row) == ["pgd-margin", "adaptive-start", "apgd"]


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("results-*.json")), ids=lambda path: path.stem)
def test_no_committed_attack_is_worse_than_its_worst_case(path):
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert rows
    for row in rows:
        assert row["worst"]["gap"] <= min(result["gap"] for result in row["attacked"].values())
        doubled = {key: found["gap"] for key, found in row["other"].items() if key.endswith("@2")}
        assert doubled.get("worst@2", 0) <= min(doubled.values())
