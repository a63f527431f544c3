"""One A-ART step at the size of the paper's data set: 300 frames x 1,152, batch 32, width 256, 4 layers, 8 heads.

python tests/benchmarks/full_size.py [--accumulate 4] [--recompute]
"""

import argparse
import time

import models
from bench import peak

from aart_lib.losses import DEFENSES
from aart_lib.steps import Hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--defense", default="a-art")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    (_, *sizes), shape = models.LONG
    parts = [models.make((32 // options.accumulate, *sizes), shape, padded=False)[1]] * options.accumulate
    hardware = Hardware(accumulate=options.accumulate, recompute=options.recompute)
    _, step = models.stepping(DEFENSES[options.defense], parts, hardware, **shape)
    for _ in range(options.steps):
        started = time.perf_counter()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in step().items())
        print(f"{time.perf_counter() - started:.1f} s a step of 32 videos; {shown}", flush=True)
    print(f"peak memory {peak() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
