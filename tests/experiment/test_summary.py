"""summary.py: the summary by hand, comparisons and intervals wired to the right scores, the ceiling where it holds."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from aart_lib.data import synthetic
from aart_lib.data.catalog import open_data, variant_of
from aart_lib.experiment.ceiling import ceiling, matched_filter
from aart_lib.experiment.summary import MEASURES, compare, intervals, summarize
from aart_lib.experiment.uncertainty import gap_of, holm, interval, judged
from aart_lib.metrics import gap

TINY = replace(synthetic.SETTINGS["default"], train_videos=60, test_videos=20, shard_size=60, frames=(3, 6))


def a_row(defense: str, seed: int, clean: float, worst: float, doubled: float = 0.3) -> dict:
    return {
        **{"defense": defense, "seed": seed, "clean": {"gap": clean}, "worst": {"gap": worst}},
        "attacked": {"fgsm": {"gap": worst + 0.03}, "pgd": {"gap": worst + 0.01}},
        "other": {"worst@2": {"gap": doubled}, "frames-1": {"gap": worst + 0.05}},
        "steady_attention": {"gap": worst + 0.02, "gap@2": doubled},
        **{"attention_drift": 0.2, "attention_entropy": 0.6, "attention_hijacked": 0.1 * seed},
        "evidence_share": {"clean": 0.5, "attacked": 0.4, "chance": 0.2},
        "train_seconds": 10.0 + seed,
    }


# Of each seed clean and worst of the baseline, clean, worst and worst at 2ε of A-ART.
SEEDS = [(0.90, 0.70, 0.89, 0.80, 0.5), (0.92, 0.72, 0.90, 0.77, 0.6), (0.91, 0.66, 0.91, 0.81, 0.4)]
ROWS = [
    row
    for seed, (clean, worst, *ours) in enumerate(SEEDS)
    for row in (a_row("standard", seed, clean, worst), a_row("a-art", seed, *ours))
]


def test_summary_numbers_are_the_hand_computed_ones():
    found = summarize(ROWS, {"a-art": [0.7, 0.9]})
    assert list(found) == ["standard", "a-art"]
    a_art, worst = found["a-art"], (0.80 + 0.77 + 0.81) / 3
    expected = {
        **{"clean_gap": 0.9, "worst_gap": worst, "worst@2_gap": 0.5, "frames-1_gap": worst + 0.05, "seeds": 3},
        **{"fgsm_gap": worst + 0.03, "pgd_gap": worst + 0.01, "steady_gap": worst + 0.02, "steady_gap@2": 0.5},
        **{"evidence_attacked": 0.4, "train_seconds": 11, "attention_hijacked": 0.1, "attention_drift": 0.2},
        # Baselines of the same seed.
        "recovered_share": statistics.fmean([0.10 / 0.20, 0.05 / 0.20, 0.15 / 0.25]),
        "recovered_share@2": statistics.fmean([0.2 / 0.6, 0.3 / 0.62, 0.1 / 0.61]),
        "recovered_share_frames-1": statistics.fmean([0.10 / 0.15, 0.05 / 0.15, 0.15 / 0.20]),
    }
    assert {key: a_art[key] for key in expected} == pytest.approx(expected)
    assert found["standard"]["recovered_share"] == pytest.approx(0)
    assert {name: of["ci95"] for name, of in found.items()} == {"standard": None, "a-art": [0.7, 0.9]}


def test_nothing_is_recovered_where_there_is_no_baseline_or_nothing_was_lost():
    assert summarize(ROWS[1:2])["a-art"]["recovered_share"] is None
    unhurt = [a_row("standard", 0, 0.7, 0.7), a_row("a-art", 0, 0.7, 0.8)]
    assert summarize(unhurt)["a-art"]["recovered_share"] is None
    summary = summarize([row | {"evidence_share": None} for row in ROWS])
    assert not any(key.startswith("evidence") for key in summary["a-art"])


NAMES = "standard", "trades", "a-art"
RUNS = [{"defense": name, "seed": seed} for seed in range(2) for name in NAMES]


def a_run(name: str, seed: int, measure: str):
    """A model's answers to 40 videos that are the same for all; each measure is a task of its own."""
    task = np.random.default_rng([*MEASURES].index(measure))
    labels, hard = task.random((40, 25)) < 0.1, task.normal(size=(40, 25))
    labels[:, 0] |= ~labels.any(1)
    own = np.random.default_rng([seed, *name.encode()]).normal(size=labels.shape)
    return judged({"a-art": 2.0, "trades": 1.9, "standard": 0.5}[name] * labels + hard + 0.2 * own, labels)


def test_intervals_are_of_the_worst_case_over_all_seeds_of_a_defense():
    for name, limits in intervals(a_run, RUNS).items():
        runs = [a_run(name, seed, "worst") for seed in range(2)]
        assert limits == list(interval(runs)[1]) and limits[0] < np.mean([*map(gap_of, runs)]) < limits[1]
    assert intervals(a_run, RUNS[:3]) == dict.fromkeys(NAMES)  # one seed


def test_ours_is_compared_with_every_other_defense_by_every_measure():
    found = compare(a_run, RUNS)
    assert [(c["measure"], c["with"]) for c in found] == [(m, o) for m in MEASURES for o in ("standard", "trades")]
    assert {c["of"] for c in found} == {"a-art"}
    for c in found:
        gaps = [[gap_of(a_run(name, seed, c["measure"])) for seed in range(2)] for name in ("a-art", c["with"])]
        assert c["difference"] == pytest.approx(np.mean(gaps[0]) - np.mean(gaps[1]))
        assert c["ci95"][0] <= c["difference"] <= c["ci95"][1]
    for measure in MEASURES:  # corrected for as many tests as a measure has
        part = {c["with"]: c for c in found if c["measure"] == measure}
        assert {name: c["p_holm"] for name, c in part.items()} == holm({name: c["p"] for name, c in part.items()})
        assert part["standard"]["p_holm"] < 0.01 and part["standard"]["difference"] > 0.1


def attacked(norm="linf", epsilon=0.05, *factors) -> list[dict]:
    other = {"pgd@2": {"threat": {"norm": norm, "epsilon": 2 * epsilon}}}
    other |= {f"curve@{x:g}": {"threat": {"epsilon": x * epsilon}, "gap": 0.5} for x in factors}
    return [{"other": other | {"frames-1": {"threat": {"norm": norm, "epsilon": 8 * epsilon}}}}]


def test_the_ceiling_is_the_matched_filters_certified_gap_at_every_epsilon_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("AART_CACHE", str(tmp_path))
    monkeypatch.setitem(synthetic.SETTINGS, "short", TINY)
    short = open_data("synthetic:short")
    assert variant_of(short) == "short"
    found = ceiling("short", short.test, attacked("linf", 0.05, 0.5, 3.0))
    assert [entry["epsilon"] for entry in found] == pytest.approx([0, 0.025, 0.05, 0.1, 0.15])
    gaps = [entry["gap"] for entry in found]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > gaps[-1]
    (batch,) = short.test.batches(100)
    scores = matched_filter(TINY, batch.frames, batch.evidence, labels=batch.labels, epsilon=0.05)
    assert gaps[2] == pytest.approx(float(gap(torch.from_numpy(scores), batch.labels)))
    # Only L∞ and known variants have one.
    assert ceiling("short", short.test, attacked("l2-clip")) == ceiling(None, short.test, attacked()) == []
