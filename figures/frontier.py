"""What a bound on attention scores gains against a spliced frame, and what it costs against a change of all frames.

    python figures/frontier.py --out runs/frontier --jobs 2     # hours on two cores; goes on from what is there

Every method is trained at every bound c, on free scores too, with and without spliced frames in training.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from aart_lib.data import open_data
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.reproduce import reproduce
from aart_lib.losses import DEFENSES
from aart_lib.runtime.jobs import most
from aart_lib.threats import ThreatModel

BOUNDS = (0.5, 1.0, 2.0, 4.0, None)
EPSILON = 0.0416  # of the synthetic results, figures/results-synthetic.json


def variants() -> list[str]:
    """The names of all, registered as defenses."""
    known = set(DEFENSES)
    for bound in BOUNDS:
        shape = {"bound": bound} if bound else {}
        for name in ("trades", "a-art"):
            for splice in (False, True):
                label = f"{name}{'-splice' * splice}, {f'c = {bound:g}' if bound else 'free'}"
                DEFENSES[label] = replace(DEFENSES[name], few=0.5 * splice, splice=splice, model=shape)
    for splice in (False, True):
        last = {"bound": 1.0, "bounded": "last"}
        label = f"trades{'-splice' * splice}, c = 1 in the last block"
        DEFENSES[label] = replace(DEFENSES["trades"], few=0.5 * splice, splice=splice, model=last)
    return [name for name in DEFENSES if name not in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    names = variants()
    preset = replace(PRESETS["small"], suite="splice", test_videos=500)
    threat, jobs = ThreatModel("linf", EPSILON), options.jobs or most(len(names))
    how = {"preset": preset, "seeds": options.seeds, "defenses": names, "threat": threat, "jobs": jobs}
    reproduce(open_data("synthetic"), options.out, **how)


if __name__ == "__main__":
    main()
