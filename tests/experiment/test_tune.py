"""figures/tune.py: no defense with fewer trials than A-ART, the best of the ledger kept, README and results agree."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tune as tuning
from tune import grid, main, merit

from aart_lib.data.catalog import open_data
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.recipes import TUNED, changed
from aart_lib.experiment.report import heading, table
from aart_lib.experiment.summary import summarize
from aart_lib.steps import Hardware
from aart_lib.threats import ThreatModel

ROOT = Path(__file__).resolve().parents[2]
DATA = ("synthetic", "audioset")


def stored(kind: str, data: str) -> dict:
    return json.loads((ROOT / "figures" / f"{kind}-{data}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("data", DATA)
def test_no_defense_has_fewer_trials_than_a_art_training_epsilon_included(data):
    counts = {name: len(trials) for name, trials in grid(data).items()}
    assert min(counts.values()) == counts["a-art"] >= 4
    epsilons = {name: {changes.get("epsilon_scale") for changes in trials} for name, trials in grid(data).items()}
    assert all(len(tried) > 1 for name, tried in epsilons.items() if name != "standard")


@pytest.mark.parametrize("data", DATA)
def test_every_trial_of_the_grid_was_run_and_the_best_was_kept(data):
    ledger = stored("trials", data)["trials"]
    for name, plan in grid(data).items():
        run = [found["changes"] for found in ledger[name]]
        assert [changes for changes in plan if json.loads(json.dumps(changes)) not in run] == []
        best = max(ledger[name], key=lambda found, name=name: merit(found, name))
        assert changed(name, TUNED[data].get(name, {})) == changed(name, best["changes"]), name


@pytest.mark.parametrize("data", DATA)
def test_readme_shows_the_stored_results(data):
    results, readme = stored("results", data), (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    intervals = {name: summary["ci95"] for name, summary in results["summary"].items()}
    assert results["summary"] == summarize(results["rows"], intervals)
    assert heading(results) in readme
    assert table(results["summary"]) in readme


@pytest.fixture(scope="module")
def tiny(written) -> Path:
    return written(train_videos=40, test_videos=12, shard_size=40, frames=(3, 5))


@pytest.fixture
def tried(monkeypatch) -> list:
    """The ε of each trial; trials cost nothing."""
    found, gaps = [], {"clean": 0.9, "pgd": 0.8, "pgd@2": 0.7, "frames-1": 0.6}

    def trial(name, changes, splits, threat, preset):
        found.append(threat.epsilon)
        return {"changes": changes, "epochs": preset.epochs or splits.spec.epochs} | gaps

    monkeypatch.setattr(tuning, "trial", trial)
    return found


def test_a_ledger_is_gone_on_with_at_its_own_epsilon_and_never_at_another(tiny, tmp_path, tried, capsys):
    ledger = tmp_path / "trials.json"
    line = ["--data-dir", str(tiny), "--out", str(ledger), "--epochs", "2", "--defenses"]
    assert main([*line, "vat", "--epsilon", "0.05"]) == 0
    assert main([*line, "trades"]) == 0 and set(tried) == {0.05}
    before = ledger.read_bytes()
    others = (["--epsilon", "0.1"], ["--epsilon", "0.05", "--norm", "l2-clip"], ["--labels", "5"], ["--epochs", "3"])
    for other in others:
        capsys.readouterr()
        assert main([*line, "a-art", *other]) == 2
        assert "trials.json has trials with" in capsys.readouterr().err and ledger.read_bytes() == before


def test_what_cannot_be_tuned_is_told_before_anything_is_done(tiny, tmp_path, tried, capsys):
    ledger = tmp_path / "out" / "trials.json"
    line = ["--data-dir", str(tiny), "--out", str(ledger), "--defenses", "a-art-fast"]
    assert main(line) == 2 and "a-art-fast has no grid of trials on synthetic" in capsys.readouterr().err
    assert not ledger.parent.exists()
    ledger.parent.mkdir()
    for text in ("{", "[]", "{}"):
        ledger.write_text(text)
        assert main([*line[:-1], "vat"]) == 2 and "trials.json is not a ledger" in capsys.readouterr().err
        assert ledger.read_text() == text and not tried


def test_a_trial_trains_on_the_hardware_of_the_preset(tiny, monkeypatch):
    def train(*arguments, hardware, **options):
        raise InterruptedError(hardware)

    monkeypatch.setattr(tuning, "train", train)
    preset = replace(PRESETS["quick"], hardware=Hardware(workers=3))
    with pytest.raises(InterruptedError, match=r"workers=3"):
        tuning.trial("vat", {}, open_data("synthetic", tiny), ThreatModel("linf", 0.1), preset)
