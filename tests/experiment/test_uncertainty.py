"""uncertainty.py: against GAP of videos that are really repeated, and the laws that intervals and p values obey."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aart_lib import metrics
from aart_lib.experiment.uncertainty import (
    Difference,
    Judged,
    gap_of,
    holm,
    interval,
    judged,
    paired_bootstrap,
    resampled_gap,
)


@st.composite
def videos(draw):
    """Scores and labels [N,C], with or without equal scores, with more and with fewer than 20 classes."""
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.random(shape) if draw(st.booleans()) else rng.integers(0, 5, shape) / 8
    return scores, rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.3, 0.8]))


def world(count, seed, classes=30):
    """Labels [N,C] with one to three true classes a video, and how hard each entry is, for all models alike."""
    rng = np.random.default_rng(seed)
    ranks = rng.random((count, classes)).argsort(1)
    return ranks < rng.integers(1, 4, (count, 1)), rng.normal(size=(count, classes))


def model(labels, hardness, skill, seed, own=0.3):
    """A model of a given skill: what is hard is hard for every model, plus noise of its own."""
    noise = own * np.random.default_rng(seed).normal(size=labels.shape)
    return judged(skill * labels + hardness + noise, labels)


def flat(value, count=8):
    """A run whose GAP is 0 or 1 whatever the videos: none or all of its hits come first."""
    return Judged(np.ones((count, 1)), np.full((count, 1), bool(value)), np.ones(count, np.int64))


def width(limits):
    return limits[1] - limits[0]


@given(videos(), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_counts_are_as_good_as_repeated_videos_with_ties_too(batch, most, seed):
    assert gap_of(judged(*batch)) == metrics.gap(*batch)
    counts = np.random.default_rng(seed).integers(0, most + 1, (3, len(batch[0])))
    counts[:, 0] += counts.sum(1) == 0  # metrics.gap of no video is not a number
    repeated = [metrics.gap(*(np.repeat(array, row, axis=0) for array in batch)) for row in counts]
    np.testing.assert_allclose(resampled_gap(judged(*batch), counts), repeated, atol=1e-12)


def test_a_better_model_is_found_better_and_swapping_turns_the_sign():
    labels, hardness = world(200, 0)
    ours, theirs = ([model(labels, hardness, skill, 10 * skill + s) for s in range(3)] for skill in (3, 2))
    found, swapped = paired_bootstrap(ours, theirs, draws=500), paired_bootstrap(theirs, ours, draws=500)
    assert found.mean == pytest.approx(np.mean([*map(gap_of, ours)]) - np.mean([*map(gap_of, theirs)]))
    assert 0 < found.ci95[0] < found.mean < found.ci95[1]
    assert found.p == pytest.approx(2 / 501)  # the smallest that 500 draws can show
    assert swapped.mean == -found.mean and swapped.p == found.p
    assert swapped.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))


def test_pairing_narrows_the_interval_of_models_that_find_the_same_videos_hard():
    labels, hardness = world(200, 0)
    ours, theirs = ([model(labels, hardness, skill, skill)] for skill in (3, 2))
    paired = width(paired_bootstrap(ours, theirs, draws=500).ci95)
    unpaired = np.hypot(*(width(interval(runs, draws=500, seed=i)[1]) for i, runs in enumerate((ours, theirs))))
    assert 0 < paired < 0.8 * unpaired


def test_seeds_are_drawn_too_and_both_models_draw_the_same():
    one, zero = flat(1), flat(0)
    assert interval([one], draws=100) == (1, (1, 1))
    assert interval([one, zero], draws=100) == (0.5, (0, 1))
    assert paired_bootstrap([one, zero], [one, zero], draws=100) == Difference(0, (0, 0), 1)
    found = paired_bootstrap([one, zero], [zero, one], draws=100)
    assert (found.mean, found.ci95) == (0, (-1, 1)) and found.p > 0.5


def test_all_seeds_of_a_draw_see_the_same_videos():
    run = model(*world(60, 0), 2, 0)
    several, alone = (width(interval([run] * seeds)[1]) for seeds in (4, 1))
    assert several == pytest.approx(alone, rel=0.15)  # separate videos would halve the width


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    labels, hardness = world(20_000, 0, classes=8)
    population = [model(labels, hardness, skill, seed) for seed, skill in enumerate((2.2, 2.0))]
    truth = gap_of(population[0]), gap_of(population[0]) - gap_of(population[1])
    rng, covered = np.random.default_rng(1), np.zeros(2)
    for trial in range(100):
        chosen = rng.choice(len(labels), 100, replace=False)
        ours, theirs = ([Judged(*(array[chosen] for array in run))] for run in population)
        found = interval(ours, draws=200, seed=trial)[1], paired_bootstrap(ours, theirs, draws=200, seed=trial).ci95
        covered += [low <= value <= high for (low, high), value in zip(found, truth, strict=True)]
    assert all(0.89 <= share <= 0.975 for share in covered / 100), covered


def test_holm_equals_published_values():
    raw = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]  # Benjamini & Hochberg 1995, section 3
    raw += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    adjusted = list(holm({f"hypothesis {i}": value for i, value in enumerate(raw)}).values())
    assert adjusted[:5] == pytest.approx([0.0015, 0.0056, 0.0247, 0.1140, 0.2211])
    assert adjusted[9:] == [1] * 6


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(raw):
    adjusted = np.array(list(holm(dict(enumerate(raw))).values()))
    assert np.all(adjusted >= raw) and np.all(adjusted <= np.minimum(1, len(raw) * np.array(raw)))
    assert np.all(np.diff(adjusted[np.argsort(raw)]) >= 0)


def test_only_answers_about_the_same_videos_are_compared():
    run = flat(1)
    for other in (flat(1, count=9), run._replace(positives=run.positives + 1)):
        with pytest.raises(ValueError, match="same videos"):
            paired_bootstrap([run], [other])


def test_scores_without_labels_of_their_shape_are_refused():
    for shapes, words in (
        (((0, 3), (0, 3)), "at least one video, got none"),
        (((2, 3), (3, 2)), r"\[N,C\], got \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            judged(*map(np.zeros, shapes))
