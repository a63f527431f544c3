"""figures/voting.py: no frame has more than one voice, and what the certificate says holds for any frame."""

import runpy
from pathlib import Path

import pytest
import torch

from aart_lib.attention import SteadyAttention
from aart_lib.data import Splits, VideoDataset
from aart_lib.losses import DEFENSES
from aart_lib.metrics import gap
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.scoring import probabilities, score
from aart_lib.steps import Learner, TrainConfig
from aart_lib.threats import ThreatModel
from aart_lib.training import train

CODE = runpy.run_path(str(Path(__file__).parents[2] / "figures" / "voting.py"))
FrameVote, certified = CODE["FrameVote"], CODE["certified"]


@pytest.fixture
def data() -> VideoDataset:
    made = torch.Generator().manual_seed(0)
    videos = [torch.randn(length, 6, generator=made).clamp(-1.9, 1.9) for length in (3, 5, 8, 7, 4, 8)]
    return VideoDataset.from_tensors(videos, torch.rand(6, 4, generator=made) > 0.6)


@pytest.fixture
def vote() -> torch.nn.Module:
    torch.manual_seed(0)
    return FrameVote(VideoTransformer(ModelConfig(6, 4, max_frames=8, width=16, heads=2))).eval()


@pytest.mark.parametrize("voters", [3, 5])
def test_no_single_frame_brings_a_vote_below_its_certificate(data, vote, voters):
    vote.voters, kept = voters, data.select([i for i in range(len(data)) if len(data[i].frames) >= voters])
    (batch,), bound = kept.batches(100), certified(vote, kept)
    assert 0 < bound < score(vote, kept)["gap"]
    found, generator = [], torch.Generator().manual_seed(1)
    for frame in range(8):
        for size in (0.5, 2.0, 50.0):
            planted = batch.frames.clone()
            planted[:, frame] = size * torch.randn(len(batch), 6, generator=generator) * batch.mask[:, frame, None]
            found.append(gap(probabilities(vote(planted, batch.mask).logits.detach()), batch.labels))
    assert bound <= min(found) < score(vote, kept)["gap"]


def test_a_frame_reaches_one_voter_only(data, vote):
    (batch,) = data.batches(100)
    planted = batch.frames.clone()
    planted[:, 1] += 1.0
    before, after = (vote.answers(frames, batch.mask) for frames in (batch.frames, planted))
    assert [torch.equal(a.logits, b.logits) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_maps_of_all_voters_stand_side_by_side_and_can_be_held(data, vote):
    (batch,) = data.batches(100)
    output = vote(batch.frames, batch.mask, return_attention=True)
    assert [m.shape for m in output.attention] == [(6, 6, 9, 9)] * 2  # 3 voters of 2 heads
    rows = output.attention[-1][:, :, 0]
    torch.testing.assert_close(rows.sum(-1), torch.ones(6, 6))
    assert rows[:, 2:4, [1, 3, 4, 6, 7]].abs().max() == 0  # the second voter sees the frames 1, 4 and 7, [CLS] before
    held = SteadyAttention(vote, output.attention)(batch.frames, batch.mask)
    torch.testing.assert_close(held.logits, output.logits)


def test_too_short_a_video_and_an_even_vote_are_refused(data, vote):
    with pytest.raises(ValueError, match="fewer than 5 frames"):
        FrameVote(vote.model, 5)(data[0].frames[None], torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="odd in number"):
        FrameVote(vote.model, 2)


def test_training_shows_each_step_the_frames_of_one_voter_in_turns(monkeypatch):
    made = torch.Generator().manual_seed(0)
    videos = [torch.randn(length, 6, generator=made).clamp(-1.9, 1.9) for length in [2] + [8] * 23]
    videos[2][4] = 1.5  # whoever sees the frame 4 is the second voter
    every = VideoDataset.from_tensors(videos, torch.rand(24, 4, generator=made) > 0.5)
    splits, seen = Splits(every.spec, every, every, every), []
    learned = Learner.gradients
    monkeypatch.setattr(
        Learner, "gradients", lambda run, batch, *more: seen.append(batch) or learned(run, batch, *more)
    )
    shape, threat = ModelConfig(6, 4, max_frames=8, width=16, heads=2), ThreatModel("linf", 0.1)
    how = {"kind": CODE["OneVoter"], "progress": None}
    train(DEFENSES["a-art"], splits, shape, threat, TrainConfig(epochs=3, batch_size=24), **how)
    assert [batch.mask.shape[1] for batch in seen] == [3, 3, 2]
    assert [len(batch) for batch in seen] == [24, 24, 23]  # the third voter sees nothing of two frames
    assert [bool((batch.frames == 1.5).all(2).any()) for batch in seen] == [False, True, False]
