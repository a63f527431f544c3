"""Importing the library beside importing torch, each in a fresh interpreter."""

import os
import subprocess
import sys
from functools import partial

from bench import DEARER, ROOT, Settings, in_turns

PEER, EVERYTHING = "import torch", "import all that training and evaluation need"
PROGRAMS = {"import aart_lib": "import aart_lib", EVERYTHING: "import aart_lib.experiment.reproduce", PEER: PEER}
SAID = {  # target and note
    "import aart_lib": (1.2, "names are imported when first used"),
    EVERYTHING: (None, "torch and accelerate among it"),
}


def imports(settings: Settings) -> list[dict]:
    """The package alone, and all that `reproduce` needs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = partial(subprocess.run, env=environment, check=True)
    jobs = {name: partial(run, [sys.executable, "-c", program]) for name, program in PROGRAMS.items()}
    times = in_turns(jobs, settings.repeats)
    return [
        times.entry("import", ours, ours, PEER, meaning=DEARER, target=target, note=note)
        for ours, (target, note) in SAID.items()
    ]
