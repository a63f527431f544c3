"""The models that are timed, with random weights and videos: time does not ask what a model has learned."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from aart_lib.data.batch import BOX, LEVEL, Batch
from aart_lib.losses import Defense
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.steps import Hardware, Learner, TrainConfig
from aart_lib.threats import ThreatModel

# (videos, frames, features, labels), shape of the model
SMALL = (64, 32, 320, 40), {}
LONG = (8, 300, 1152, 3862), {"width": 256, "heads": 8, "layers": 4}
TINY = (4, 6, 12, 5), {"width": 16, "heads": 2}


def make(shape, options, *, padded: bool = True) -> tuple[VideoTransformer, Batch]:
    """A model in eval mode and a batch for it; with ``padded`` the videos have half to all of the frames."""
    videos, frames, features, labels = shape
    torch.manual_seed(0)
    model = VideoTransformer(ModelConfig(features, labels, max_frames=frames, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(frames // 2 if padded else frames, frames + 1, (videos,), generator=generator)
    lengths[0] = frames
    mask = torch.arange(frames) < lengths[:, None]
    x = (torch.randn(videos, frames, features, generator=generator) * 0.6).clamp(*BOX) * mask[..., None]
    hot = (torch.rand(videos, labels, generator=generator) < 3 / labels).float()
    return model, Batch(x, mask, hot, ("",) * videos)


def stepping(defense: Defense, parts: list[Batch], hardware: Hardware | None = None, **shape):
    """(model, function that takes one real training step on a batch, given in parts, and returns its losses)"""
    (_, frames, features), labels = parts[0].frames.shape, parts[0].labels.shape[1]
    videos, network = sum(map(len, parts)), ModelConfig(features, labels, max_frames=frames, **shape)
    learner = Learner(defense, network, TrainConfig(batch_size=videos), 10**6, Accelerator(), hardware)
    return learner.model.train(), lambda: learner.learn(parts, videos, ThreatModel("linf", LEVEL))


def counted(run) -> int:
    """FLOPs as PyTorch counts them, two for a multiplication and an addition; not by module, which hooks gradients."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = nullcontext()
    counter.mod_tracker.parents = {"Global"}
    with counter:
        run()
    return counter.get_total_flops()
