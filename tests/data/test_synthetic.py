"""synthetic.py: frozen bytes, honest evidence, and the likeness to genuine videos that it claims."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aart_lib.data import describe, synthetic
from aart_lib.data.batch import BOX, LEVEL
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS
from aart_lib.data.records import read_records
from aart_lib.experiment.ceiling import matched_filter
from aart_lib.metrics import gap

DEFAULT = synthetic.SETTINGS["default"]
SMALL = replace(DEFAULT, train_videos=5, test_videos=2, shard_size=3)
DIMS = {"rgb": DEFAULT.rgb_dims, "audio": DEFAULT.audio_dims}


def multi_hot(videos) -> np.ndarray:
    return np.stack([np.isin(np.arange(DEFAULT.labels), video.labels) for video in videos])


@pytest.fixture(scope="module")
def train():
    return [synthetic.generate(DEFAULT, "train", index) for index in range(2000)]


@pytest.fixture(scope="module")
def test():
    return [synthetic.generate(DEFAULT, "test", index) for index in range(600)]


# ---------------------------------------------------------------- frozen


def test_the_generator_is_frozen(tmp_path):
    assert synthetic.settings_hash(DEFAULT) == "6a20afe1d038"
    synthetic.write(replace(DEFAULT, train_videos=500, test_videos=1), tmp_path / "data")
    shard = (tmp_path / "data" / "train-00000-of-00001.tfrecord").read_bytes()
    assert hashlib.sha256(shard).hexdigest() == "e39a299da8bd2bb69e2ae52b534d0618e055924f7d83297f74599f6108e106cb"


def test_a_video_depends_on_its_split_seed_and_number_alone(train):
    again = synthetic.generate(DEFAULT, "train", 7)
    for name in ("labels", "rgb", "audio", "evidence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(train[7], name))
    others = [synthetic.generate(DEFAULT, "test", 7), synthetic.generate(replace(DEFAULT, seed=9), "train", 7)]
    for other in (*others, train[6]):
        assert other.rgb.shape != again.rgb.shape or (other.rgb != again.rgb).mean() > 0.9


def test_every_setting_changes_the_hash_and_no_variant_has_the_seed_of_another():
    seeds = {settings.seed for settings in synthetic.SETTINGS.values()}
    assert len(seeds) == len(synthetic.SETTINGS)
    assert synthetic.settings_hash(replace(DEFAULT, jitter=0.26)) != synthetic.settings_hash(DEFAULT)
    with pytest.raises(ValueError, match="labels must be 1 to 40"):
        replace(DEFAULT, labels=41)


# ---------------------------------------------------------------- evidence


def test_evidence_of_every_label_of_a_video_and_of_no_other_is_one_uninterrupted_run(train):
    for video in train[:300]:
        np.testing.assert_array_equal(np.flatnonzero(video.evidence.any(0)), video.labels)
        assert 1 <= len(video.labels) <= DEFAULT.max_labels
        assert (np.diff(np.pad(video.evidence.astype(int), ((1, 1), (0, 0))), axis=0) == 1).sum(0).max() == 1


def test_a_third_of_the_labels_are_visible_in_under_a_fifth_of_the_frames(train):
    shown = [(video.evidence.mean(0), video.evidence.any(0)) for video in train]
    shares = sum(share for share, _ in shown) / sum(seen.astype(int) for _, seen in shown)
    assert (shares < 0.2).sum() >= DEFAULT.labels // 3
    assert (shares > 0.5).sum() >= DEFAULT.labels // 3


def test_frames_show_the_pattern_of_a_label_only_where_its_evidence_is(train):
    label = 2
    pattern = synthetic.patterns(DEFAULT)[label]
    videos = [video for video in train if label in video.labels][:60]
    inside = np.mean([(video.frames @ pattern)[video.evidence[:, label] == 1].mean() for video in videos])
    outside = np.mean([(video.frames @ pattern)[video.evidence[:, label] == 0].mean() for video in videos])
    assert abs(outside) < 0.1 * inside and inside == pytest.approx((pattern**2).sum(), rel=0.2)


# ---------------------------------------------------------------- likeness to genuine videos


def test_features_fill_the_box_of_stored_features_and_are_cut_off_by_it_in_silence(train):
    lowest = min(video.frames.min() for video in train[:200])
    highest = max(video.frames.max() for video in train[:200])
    assert BOX[0] - 1e-6 <= lowest < -1.9 and 1.9 < highest <= BOX[1] + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wild = synthetic.generate(replace(DEFAULT, offset_std=(3.0, 3.0)), "train", 0)
    assert (np.isin(wild.rgb, (0, 255))).mean() > 0.25


def check_likeness(found: dict, genuine: dict, lags: float):
    assert found["autocorrelation"] == pytest.approx(genuine["autocorrelation"], abs=lags)
    tolerances = {"std": 0.03, "within": 0.03, "byte_0": 0.012, "byte_255": 0.012}
    for name in tolerances.keys() & genuine.keys():  # `within` is not known of the whole video
        assert found[name] == pytest.approx(genuine[name], abs=tolerances[name])


def test_features_vary_in_time_as_in_the_one_genuine_video(train):
    genuine = synthetic.facts()["frame_level"]
    found = describe.statistics([video.frames for video in train[:600]], DIMS)
    for part, lags in (("rgb", 0.05), ("audio", 0.12)):
        check_likeness(found[part], genuine["windows"][part], lags)
    settings = replace(DEFAULT, frames=(genuine["frames"], genuine["frames"]))
    videos = [synthetic.generate(settings, "test", index).frames for index in range(60)]
    found = describe.statistics(videos, DIMS, window=genuine["frames"])
    for part in DIMS:
        check_likeness(found[part], genuine["whole"][part], 0.06)


def test_labels_are_as_frequent_and_as_often_together_as_in_genuine_videos(train):
    labels, facts = multi_hot(train).astype(float), synthetic.facts()
    histogram = np.array(facts["labels_among_top40"], float)
    with_any = histogram[1:].sum()  # the generator makes no video without a label
    frequencies = np.array(facts["frequencies"]) * histogram.sum() / with_any
    np.testing.assert_allclose(labels.mean(0), frequencies, atol=0.03)
    together = (labels.T @ labels)[:10] / labels.sum(0)[:10, None]
    np.testing.assert_allclose(together, np.array(facts["cooccurrence"])[:10], atol=0.16)
    assert labels.sum(1).mean() == pytest.approx(histogram @ np.arange(len(histogram)) / with_any, abs=0.1)


def test_ridge_regression_on_frame_means_is_as_good_as_on_genuine_videos(train, test):
    means, held_out = (np.stack([video.frames.mean(0) for video in videos]) for videos in (train, test))
    labels = multi_hot(train).astype(float)
    center, prior = means.mean(0), labels.mean(0)
    values, vectors = np.linalg.eigh((means - center).T @ (means - center))
    target = vectors.T @ (means - center).T @ (labels - prior)
    best = 0.0
    for penalty in (0.01, 0.03, 0.1, 0.3, 1.0):
        weights = vectors @ (target / (values + penalty * len(means))[:, None])
        best = max(best, float(gap((held_out - center) @ weights + prior, multi_hot(test))))
    assert best == pytest.approx(synthetic.facts()["ridge_gap"]["40"]["2000"], abs=0.03)


def test_facts_are_small_attributed_and_without_records():
    facts = synthetic.facts()
    file = Path(synthetic.__file__).with_name("youtube8m_facts.json")
    assert file.stat().st_size < 60_000
    assert "CC BY 4.0" in facts["licence"] and "research.google.com/youtube8m" in facts["source"]


# ---------------------------------------------------------------- files


def test_shards_are_read_by_the_reader_of_genuine_ones(tmp_path):
    synthetic.write(SMALL, tmp_path / "data")
    paths = sorted((tmp_path / "data").glob("train*.tfrecord"))
    assert [path.name for path in paths] == ["train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"]
    dataset = VideoDataset(paths, SPECS["synthetic"])
    for index, item in zip(range(SMALL.train_videos), dataset, strict=True):
        video = synthetic.generate(SMALL, "train", index)
        assert item.id == video.id
        np.testing.assert_array_equal(np.flatnonzero(item.labels), video.labels)
        np.testing.assert_allclose(item.frames, video.frames, atol=1e-6)
        np.testing.assert_array_equal(item.evidence, video.evidence)


def test_data_is_generated_once_and_known_by_what_is_in_its_folder_and_not_by_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("AART_CACHE", str(tmp_path))
    monkeypatch.setitem(synthetic.SETTINGS, "short", SMALL)
    folder = synthetic.ensure(SMALL)
    monkeypatch.delattr(synthetic, "write")
    assert synthetic.ensure(SMALL) == folder
    assert sum(1 for path in folder.glob("*.tfrecord") for _ in read_records(path)) == 7
    folder = folder.rename(tmp_path / "synthetic-000000000000")
    assert synthetic.made_with(folder) == synthetic.settings_hash(SMALL)
    assert synthetic.made_with(tmp_path) is None


# ---------------------------------------------------------------- ceiling and statistics


def test_the_matched_filter_is_nearly_perfect_and_keeps_most_under_any_attack(test):
    def padded(tables) -> np.ndarray:
        return np.stack([np.pad(table, ((0, DEFAULT.frames[1] - len(table)), (0, 0))) for table in tables])

    frames, evidence = padded(v.frames for v in test[:300]), padded(v.evidence for v in test[:300])
    labels = multi_hot(test[:300])
    clean = gap(matched_filter(DEFAULT, frames, evidence), labels)
    certified = gap(matched_filter(DEFAULT, frames, evidence, labels=labels, epsilon=3 * LEVEL), labels)
    assert clean > 0.98 and 0.9 * clean < certified < clean


def test_statistics_recover_a_known_autocorrelation():
    series = np.random.default_rng(0).standard_normal((20, 500, 8)) * 0.5
    for t in range(1, 500):
        series[:, t] = 0.6 * series[:, t - 1] + 0.8 * series[:, t]
    found = describe.statistics(list(series), {"rgb": 5, "audio": 3}, window=500)
    for part in ("rgb", "audio"):
        assert found[part]["std"] == pytest.approx(0.5, abs=0.02)
        lags = found[part]["autocorrelation"]
        assert (lags["1"], lags["2"]) == pytest.approx((0.6, 0.36), abs=0.03)
