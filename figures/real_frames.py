"""The staircase on real frames: clips of seven classes joined to films, so that it is known when each label shows.

    python figures/real_frames.py CLIPS --out runs/real-frames     # two hours on two cores; goes on if stopped

CLIPS is a folder that `aart_lib films` reads. results-films.json beside this file is of 331 clips of UCF-101 (Soomro,
Zamir & Shah 2012). Four classes are labels, each shown for one or two seconds; three others fill the time. Groups of
people are split between training, validation and test. Background and number of components are those, of a few tried,
with which the baseline's validation score is highest (figures/README.md says which).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from aart_lib.data import open_data
from aart_lib.data.films import Joins, films
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.reproduce import reproduce
from aart_lib.runtime.jobs import most

BACKGROUND, CLIPS, COMPONENTS = ("JumpingJack", "Lunges", "WallPushups"), 8, 32
NAMES = ["standard", "adversarial-relu", "adversarial-simple", "a-art-simple", "adversarial", "trades", "a-art"]
NAMES += ["a-art-fixed-maps", "trades-uniform"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real-frames"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    made = options.out / "films"
    print(films(options.clips, made, join=Joins(CLIPS, BACKGROUND), dims=COMPONENTS, pictured=("test",)))
    preset, jobs = replace(PRESETS["small"], suite="strong"), options.jobs or most(len(NAMES))
    reproduce(open_data("films", made), options.out, preset=preset, seeds=options.seeds, defenses=NAMES, jobs=jobs)


if __name__ == "__main__":
    main()
