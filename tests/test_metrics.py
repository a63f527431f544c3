"""metrics.py: against the published code's values, a slow reference, and the laws the scores obey."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aart_lib import metrics

NAMES = {"gap": "gap_at_20", "map": "map", "hit1": "hit_at_one", "perr": "perr"}


def every_score(scores, labels):
    result = metrics.Accumulator().update(scores, labels).result()
    untruncated = metrics.mean_average_precision(scores, labels, top_k=None)
    return {NAMES[name]: value for name, value in result.items()} | {"map_untruncated": untruncated}


def slow_gap(scores, labels, top_k):
    """GAP as one would explain it, entry by entry; Python sorts, misses first among equal scores."""
    pool = []
    for row, true in zip(scores, labels, strict=True):
        pool += sorted(zip(-row, true, strict=True))[:top_k]
    total = hits = 0
    for rank, (_, hit) in enumerate(sorted(pool), start=1):
        hits += hit
        total += hits / rank if hit else 0
    return total / max(1, labels.sum())


def slow_map(scores, labels, top_k):
    """mAP class by class; the pooled entries of a class are those videos that rank it among their top."""
    best = [sorted(range(row.size), key=lambda c: (-row[c], true[c], c))[:top_k] for row, true in zip(scores, labels)]  # noqa: B905
    values = []
    for c in np.flatnonzero(labels.sum(0)):
        hits = [hit for _, hit in sorted((-scores[n, c], labels[n, c]) for n in range(len(best)) if c in best[n])]
        values.append(sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / labels[:, c].sum())
    return np.mean(values) if values else np.nan


@st.composite
def videos(draw):
    """Scores from a coarse grid, many of them equal, and labels [N,C]."""
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.8]))
    return rng.integers(0, draw(st.integers(1, 9)), shape) / 8, labels.astype(np.uint8)


def test_values_equal_the_published_code_but_for_what_equal_scores_allow(real_data):
    arrays = np.load(real_data / "gap_golden.npz", allow_pickle=False)
    for case in json.loads((real_data / "gap_golden.json").read_text())["cases"]:
        scores, labels = (arrays[f"case{case['case']:02d}_{kind}"] for kind in ("scores", "labels"))
        for name, value in every_score(scores, labels).items():
            if case["tie_free"]:
                expected = np.nan if case["expected"][name] is None else case["expected"][name]
                assert value == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True), (case["kind"], name)
            else:
                low, high = case["tie_bounds"][name]
                assert low - 1e-12 <= value <= high + 1e-12, (case["kind"], name)
        if not case["tie_free"]:  # among equals the misses come first
            assert metrics.gap(scores, labels) == pytest.approx(case["tie_bounds"]["gap_at_20"][0], abs=1e-12)


@given(videos(), st.integers(1, 25))
def test_gap_and_map_equal_a_slow_reference(batch, top_k):
    assert metrics.gap(*batch, top_k=top_k) == pytest.approx(slow_gap(*batch, top_k), abs=1e-12)
    expected = slow_map(*batch, top_k)
    assert metrics.mean_average_precision(*batch, top_k=top_k) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(videos(), st.lists(st.integers(0, 12), max_size=3), st.randoms())
def test_merged_parts_equal_the_whole_exactly_in_any_order(batch, cuts, random):
    scores, labels = batch
    parts = list(zip(np.split(scores, sorted(cuts)), np.split(labels, sorted(cuts)), strict=True))
    random.shuffle(parts)
    merged = metrics.Accumulator()
    for part in parts:
        merged.merge(metrics.Accumulator().update(*part))
    np.testing.assert_equal(merged.result(), metrics.Accumulator().update(*batch).result())


def test_gap_and_map_see_the_twenty_best_classes_of_a_video():
    scores, labels = np.linspace(1, 0, 30)[None], np.ones((1, 30))  # a class in the top earns 1, any other 0
    assert metrics.gap(scores, labels) == pytest.approx(20 / 30)  # which counts the labels outside
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(20 / 30)
    assert metrics.Accumulator().update(scores, labels).mean_average_precision() == pytest.approx(20 / 30)
    assert metrics.mean_average_precision(scores, labels, top_k=None) == 1


@given(videos())
def test_average_precision_per_video_is_gap_of_that_video_alone(batch):
    values = metrics.average_precision_per_video(*batch)
    assert values.dtype == np.float64
    alone = [metrics.gap(scores[None], labels[None]) for scores, labels in zip(*batch, strict=True)]
    np.testing.assert_allclose(values, alone, atol=1e-12)


@given(videos())
def test_torch_and_numpy_agree(batch):
    scores, labels = torch.tensor(batch[0], requires_grad=True), torch.tensor(batch[1])
    np.testing.assert_equal(every_score(scores, labels.float()), every_score(*batch))
    assert metrics.gap(scores.bfloat16(), labels.bool()) == metrics.gap(*batch)  # eighths are exact in bfloat16


def test_scores_of_any_type_keep_their_order():
    scores, labels = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64), torch.tensor([[0, 1]])
    assert metrics.gap(scores, labels) == 1
    assert metrics.gap(scores.float(), labels) == 0.5  # among equals the misses come first
    bytes_are_numbers = np.array([[0, 200, 100]], np.uint8), np.array([[0, 1, 1]])
    assert metrics.perr(*bytes_are_numbers) == metrics.average_precision_per_video(*bytes_are_numbers)[0] == 1


def test_accumulator_keeps_top_entries_only():
    rng = np.random.default_rng(0)
    labels = np.zeros((64, 3862), bool)
    labels[0] = True  # even if one video carries every label
    accumulator = metrics.Accumulator().update(rng.random((64, 3862), np.float32), labels)
    kept = sum((array if array.base is None else array.base).nbytes for part in accumulator._parts for array in part)
    assert kept <= 64 * (20 * (8 + 1 + 4) + 8 + 1)


def test_scores_without_videos_are_undefined_and_gap_without_labels_is_zero():
    assert all(np.isnan(value) for value in metrics.Accumulator().result().values())
    result = metrics.Accumulator().update(np.ones((2, 3)), np.zeros((2, 3))).result()
    np.testing.assert_equal(result, {"gap": 0.0, "map": np.nan, "hit1": 0.0, "perr": 0.0})
    assert metrics.average_precision_per_video(np.ones((2, 3)), np.zeros((2, 3))).tolist() == [0, 0]


@pytest.mark.parametrize(
    "scores, labels, words",
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\[N,C\], got \(2, 3\) and \(3, 2\)"),
        (np.zeros(3), np.zeros(3), r"\[N,C\], got \(3,\)"),
        (np.zeros((2, 0)), np.zeros((2, 0)), r"\[N,C\]"),
        (np.array([[0.1, 0.2], [np.nan, 0.3]]), np.eye(2), "NaN in row 1"),
        (np.eye(2), np.array([[0.1, 0.2], [0.4, 0.3]]), "labels must be 0 or 1, got 0.1"),
    ],
)
def test_bad_input_is_one_clear_sentence(scores, labels, words):
    functions = metrics.gap, metrics.hit_at_one, metrics.perr, metrics.mean_average_precision
    for function in (*functions, metrics.average_precision_per_video):
        with pytest.raises(ValueError, match=words):
            function(scores, labels)


def test_a_refused_batch_leaves_the_accumulator_as_it_was():
    accumulator = metrics.Accumulator().update(np.eye(2), np.eye(2))
    for scores, labels in [(np.full((2, 2), np.nan), np.eye(2)), (np.eye(3), np.eye(3))]:
        with pytest.raises(ValueError):
            accumulator.update(scores, labels)
    with pytest.raises(ValueError, match="2 classes before, now 3"):
        accumulator.merge(metrics.Accumulator().update(np.eye(3), np.eye(3)))
    with pytest.raises(ValueError, match="top_k"):
        accumulator.merge(metrics.Accumulator(5))
    assert accumulator.result() == {"gap": 1, "map": 1, "hit1": 1, "perr": 1}


@settings(max_examples=5)
@given(st.integers(metrics.BLOCK - 1, 2 * metrics.BLOCK + 1))
def test_block_size_does_not_show(count):
    rng = np.random.default_rng(count)
    scores, labels = rng.random((count, 25)), rng.random((count, 25)) < 0.1
    streamed = metrics.Accumulator()
    for start in range(0, count, 100):
        streamed.update(scores[start : start + 100], labels[start : start + 100])
    np.testing.assert_equal(streamed.result(), metrics.Accumulator().update(scores, labels).result())
