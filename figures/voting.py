"""A video Transformer that no single frame can overrule: three voters, each of whom sees every third frame.

    python figures/voting.py --out runs/voting                  # synthetic videos, half an hour; goes on if stopped
    python figures/voting.py --data films --data-dir FOLDER     # films, as figures/real_frames.py makes them
    python figures/voting.py --data audioset --data-dir FOLDER  # ten seconds each, 50 labels, 1,000 test clips

For each label the middle one of the three answers counts. Whatever a planted frame shows, it has one voice, and the
middle lies between the other two: that is a certificate, which no attack can go below. The price is what only one frame
shows, since nobody can tell it from a planted one. It holds for a frame that is replaced, not for one that is put in
between: that would move all frames behind it to other voters.

Source: Levine & Feizi 2020 (arXiv 2002.10733) let parts of a picture vote against a patch; here frames of a video vote.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from aart_lib import checkpoint
from aart_lib.attacks import VIEWS, pgd
from aart_lib.data import open_data
from aart_lib.data.batch import Batch
from aart_lib.data.dataset import VideoDataset
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import PRESETS, model_config, train_config
from aart_lib.experiment.recipes import tuned
from aart_lib.experiment.suites import SPLICE_STEPS
from aart_lib.metrics import Accumulator
from aart_lib.model import Output, predict
from aart_lib.runtime.files import read_json, write_json
from aart_lib.runtime.jobs import most, side_by_side
from aart_lib.scoring import batches, probabilities, score
from aart_lib.threats import ThreatModel
from aart_lib.training import Run, train

VOTERS = 3
METHODS, PRESET = ("trades", "a-art"), PRESETS["small"]
THREATS = {  # as in the tables
    "synthetic": ThreatModel("linf", 0.0416),
    "films": ThreatModel("linf", 0.0633),
    "audioset": ThreatModel("l2-clip", 0.704),
}
LABELS, TEST_VIDEOS = {"audioset": 50}, 1000


class FrameVote(nn.Module):
    """Any model, asked once for every so many-th frame; for each label the answer in the middle counts.

    The heads of all voters stand side by side in the maps: [B,V·H,T+1,T+1], zero where a voter does not see a frame.
    Raises: ValueError for a video with fewer frames than voters, and for an even number of them.
    """

    def __init__(self, model: nn.Module, voters: int = VOTERS, *, averaged: bool = False):
        super().__init__()
        if voters % 2 == 0:
            raise ValueError(f"voters must be odd in number, so that one is in the middle, got {voters}")
        self.model, self.voters, self.averaged = model, voters, averaged  # the mean serves an attacker's gradients

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False, held=None) -> Output:
        said = self.answers(frames, mask, return_attention=return_attention, held=held)
        logits = torch.stack([answer.logits for answer in said])  # [V,B,C]
        logits = logits.mean(0) if self.averaged else logits.median(0).values
        if not return_attention:
            return Output(logits, None)
        layers = zip(*(answer.attention or () for answer in said), strict=True)
        wide = ([self._wide(maps, voter, frames) for voter, maps in enumerate(layer)] for layer in layers)
        return Output(logits, tuple(torch.cat(maps, 1) for maps in wide))

    def answers(self, frames: Tensor, mask: Tensor, *, return_attention=False, held=None) -> list[Output]:
        """What each voter says of its frames."""
        if (mask.sum(1) < self.voters).any():
            raise ValueError(f"a video has fewer than {self.voters} frames, one for each voter; leave it out")
        said = []
        for voter in range(self.voters):
            own = held and [m.chunk(self.voters, 1)[voter][self._places(voter, frames)] for m in held]
            seen = frames[:, voter :: self.voters], mask[:, voter :: self.voters]
            said.append(predict(self.model, *seen, return_attention=return_attention, held=own))
        return said

    def _places(self, voter: int, frames: Tensor) -> tuple:
        """Where a voter's rows and columns stand in a map of all frames."""
        own = torch.tensor([0, *range(voter + 1, frames.shape[1] + 1, self.voters)], device=frames.device)
        return slice(None), slice(None), own[:, None], own

    def _wide(self, maps: Tensor, voter: int, frames: Tensor) -> Tensor:
        wide = maps.new_zeros(*maps.shape[:2], *[frames.shape[1] + 1] * 2)
        wide[self._places(voter, frames)] = maps
        return wide


def averaged(vote: FrameVote) -> FrameVote:
    """The vote as an attacker sees it who knows it: gradients go through all voters, not only the one in the middle."""
    return FrameVote(vote.model, vote.voters, averaged=True)


class OneVoter(Run):
    """Each step trains on what one of the voters sees, in turns."""

    def gradients(self, batch: Batch, threat: ThreatModel, part):
        own = slice(self.schedule.last_epoch % VOTERS, None, VOTERS)
        batch = batch[batch.mask[:, own].any(1).nonzero()[:, 0]]  # who sees nothing of a video learns nothing from it
        seen: dict = {"frames": batch.stored[:, own].contiguous(), "mask": batch.mask[:, own], "evidence": None}
        return super().gradients(replace(batch, **seen), threat, part)


@torch.no_grad()
def certified(vote: FrameVote, dataset: VideoDataset) -> float:
    """GAP that a vote is certain to keep, whatever one frame of each video becomes.

    The frame has one voice, so the answer stays between the neighbors of the middle one: true labels are taken at the
    lower of them, wrong ones at the higher. Each of these moves can only lower GAP, so no frame brings it farther down.
    """
    total, middle = Accumulator(), vote.voters // 2
    for batch in batches(dataset, vote):
        ranked = torch.stack([answer.logits for answer in vote.answers(batch.frames, batch.mask)]).sort(0).values
        lowest = torch.where(batch.labels > 0, ranked[middle - 1], ranked[middle + 1])
        total.update(probabilities(lowest), batch.labels)
    return total.result()["gap"]


def judged(vote: FrameVote, test: VideoDataset, threat: ThreatModel, seed: int) -> dict:
    """The row of the suite "splice", the same attacks by someone who knows the vote, and the certificate."""
    VIEWS["averaged"] = averaged
    row, known = evaluate(vote, test, threat, name="splice", seed=seed), {"view": "averaged"}
    one = {"frames": "trial"} | known
    tried = {"pgd": pgd(threat, 20, 2, **known), "pgd@2": pgd(threat.times(2), 20, 1, **known)}
    tried["frames-1"] = pgd(threat.few(), 20, 3, **one)
    tried |= {f"splice-{size:g}": pgd(threat.spliced(), 20, 3, step_size=size, **one) for size in SPLICE_STEPS}
    knowing = {name: score(vote, test, attack, seed=seed)["gap"] for name, attack in tried.items()}
    return row | {"knowing": knowing, "certified": {"gap": certified(vote, test)}}


def trained_and_judged(name: str, seed: int, *, data: str, folder: Path | None, out: Path) -> dict:
    """A row of results; what was trained or judged before is not done again."""
    path, kept = out / "rows" / f"{name}-seed{seed}.json", out / "checkpoints" / f"{name}-seed{seed}.safetensors"
    if known := read_json(path):
        return known
    splits, threat = open_data(data, folder, labels=LABELS.get(data)), THREATS[data]
    test = splits.test.select(range(min(TEST_VIDEOS, len(splits.test))))
    if not kept.exists():
        recipe, settings = tuned(data, name)
        shape, config = model_config(splits, PRESET), train_config(splits, PRESET, seed=seed, **settings)
        how: dict = {"kind": OneVoter, "state": kept.with_suffix(".state"), "progress": f"{name} seed {seed}"}
        model, _ = train(recipe, splits, shape, threat, config, **how)
        notes = {"data": data, "labels": splits.labels, "defense": name, "seed": seed, "threat": threat.described()}
        checkpoint.save(kept, model, notes)
    model, _ = checkpoint.load(kept)
    row = {"defense": name, "seed": seed, "one_pass": score(model, test)["gap"]}  # asked once, for all frames
    write_json(path, row := row | judged(FrameVote(model), test, threat, seed))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=THREATS, default="synthetic")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/voting"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    tasks = [(method, seed) for seed in range(options.seeds) for method in METHODS]
    work = partial(trained_and_judged, data=options.data, folder=options.data_dir, out=options.out / options.data)
    rows = dict(side_by_side(work, tasks, options.jobs or most(len(tasks))))
    found = {"data": options.data, "threat": THREATS[options.data].described(), "voters": VOTERS}
    write_json(options.out / f"voting-{options.data}.json", found | {"rows": [rows[task] for task in tasks]})


if __name__ == "__main__":
    main()
