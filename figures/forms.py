"""Which form of A-ART's attention term, chosen once for all worlds, on their validation splits.

    python figures/forms.py                                      # synthetic videos and longer ones with rare evidence
    python figures/forms.py --films FOLDER --audioset FOLDER     # and real frames, and AudioSet; goes on if stopped
    python figures/forms.py --films FOLDER --audioset FOLDER --worlds films,audioset --confirm-in films   # forms.md
    python figures/forms.py --redraw                             # forms.md anew from forms.json

A-ART and TRADES get eight trials each in every world, all with seed 0 and judged by the suite *quick*. A trial is
chosen by its merit, the mean of GAP at ε, at 2ε and through one frame of 8ε; where attention lies is told, not
optimized. One form has to serve all worlds: it is the one with the highest mean of its merits. It and the one of all
other tables are then trained with seeds that no trial used and judged on the test splits by the suite *standard*.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import staircase
import voting

from aart_lib.data import open_data
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import PRESETS, model_config, train_config
from aart_lib.experiment.recipes import tuned
from aart_lib.losses import Defense
from aart_lib.runtime.files import read_json, replacing, write_json
from aart_lib.runtime.jobs import most, side_by_side
from aart_lib.threats import ThreatModel
from aart_lib.training import Run, train

HERE = Path(__file__).resolve().parent
THREATS = voting.THREATS | {"synthetic:rare": ThreatModel("linf", 0.0137)}
KEYS = ("merit", "clean", "at ε", "at 2ε", "one frame", "drift", "entropy", "evidence")


class Late(Run):
    """The attention term counts from the middle of the training on, when the attack has its full size."""

    def learn(self, parts, videos, threat):
        whole, late = self.defense, 2 * self.epoch >= self.config.epochs
        self.defense = whole if late else replace(whole, weights=dict(whole.weights) | {"attention": 0.0})
        try:
            return super().learn(parts, videos, threat)
        finally:
            self.defense = whole


def _maps(fixed: bool, beta: float) -> dict:
    return {"fixed_maps": fixed, "attention": beta}


def _agreement(times: float, scale: float) -> dict:
    return {"times": times, "epsilon_scale": scale}


# Eight each: what differs from the recipe of the world's tables, and how it is trained.
AART = {
    f"{maps} maps, β={beta:g}": (_maps(maps == "fixed", beta), Run)
    for maps in ("free", "fixed")
    for beta in (0.3, 1, 3)
}
AART |= {f"{maps} maps, β=1, late": (_maps(maps == "fixed", 1.0), Late) for maps in ("free", "fixed")}
TRADES = {f"agreement × {c:g}, {e:g}ε": (_agreement(c, e), Run) for e in (3.0, 4.0) for c in (0.5, 1.0, 2.0)}
TRADES |= {f"agreement × 1, {e:g}ε": (_agreement(1.0, e), Run) for e in (2.0, 5.0)}
PLAN = {"a-art": AART, "trades": TRADES}
TABLES = {"a-art": "free maps, β=0.3", "trades": "agreement × 1, 4ε"}  # the forms of all other tables


def recipe(world: str, method: str, changes: dict) -> tuple[Defense, dict]:
    """A defense as the world's tables train it, with the changes of a trial; settings of the loop apart."""
    base, settings = tuned(world.partition(":")[0], method)
    weights, more = dict(base.weights), dict(changes)
    if "attention" in more:
        weights["attention"] = more.pop("attention")
    weights["consistency"] *= more.pop("times", 1.0)
    return replace(base, weights=weights, **more), settings


def trial(world: str, method: str, form: str, seed: int = 0, *, folders: dict, out: Path) -> dict:
    """Train one form and judge it; what was found before is read.

    Seed 0 is a trial, judged on the validation split by the suite *quick*; other seeds confirm what trials chose, on
    the test split (at most 1,000 videos) by the suite *standard*.
    """
    changes, kind = PLAN[method][form]
    number, ending = list(PLAN[method]).index(form), f"-seed{seed}" * (seed > 0)
    path = out / f"{world.replace(':', '-')}-{method}-{number}{ending}.json"
    asked = {"world": world, "method": method, "form": form} | ({"seed": seed} if seed else {})
    known = read_json(path)
    if {key: known.get(key) for key in asked} == asked:
        return known
    splits, threat = open_data(world, folders.get(world), labels=voting.LABELS.get(world)), THREATS[world]
    defense, settings = recipe(world, method, changes)
    config = train_config(splits, PRESETS["small"], seed=seed, **settings)
    how: dict = {"state": path.with_suffix(".state"), "progress": form, "kind": kind}
    model, _ = train(defense, splits, model_config(splits), threat, config, **how)
    videos = splits.test.select(range(len(splits.test))[:1000]) if seed else splits.validation
    row = evaluate(model, videos, threat, name="standard" if seed else "quick", seed=seed, progress=False)
    found = {"clean": row["clean"]["gap"], "at ε": row["worst"]["gap"], "at 2ε": row["other"]["worst@2"]["gap"]}
    found |= {"one frame": row["other"]["frames-1"]["gap"], "drift": row["attention_drift"]}
    found |= {"entropy": row["attention_entropy"], "evidence": (row["evidence_share"] or {}).get("clean")}
    found["merit"] = float(np.mean([found[key] for key in ("at ε", "at 2ε", "one frame")]))
    write_json(path, asked | found)
    path.with_suffix(".state").unlink(missing_ok=True)
    return asked | found


def chosen(rows: list[dict], method: str) -> list[tuple[str, float, list[float]]]:
    """The forms of a method that were tried in all worlds: (form, mean merit, merit of each world), best first."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    merits = {(row["form"], row["world"]): row["merit"] for row in rows if row["method"] == method}
    found = []
    for form in PLAN[method]:
        own = [merits[form, world] for world in worlds if (form, world) in merits]
        if len(own) == len(worlds):
            found.append((form, float(np.mean(own)), own))
    return sorted(found, key=lambda entry: -entry[1])


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _grid(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(map(_line, [head, ["---"] * len(head), *lines]))


def confirmed_table(rows: list[dict]) -> str:
    """What the tables' forms and the chosen ones keep on test splits, with other seeds; and their differences."""
    measures, lines = ("clean", "at ε", "at 2ε", "one frame"), []
    for world in dict.fromkeys(row["world"] for row in rows):
        found = {}
        for row in sorted((row for row in rows if row["world"] == world), key=lambda row: row["seed"]):
            found.setdefault((row["method"], row["form"]), []).append([row[key] for key in measures])
        gaps = {key: np.array(values) for key, values in found.items()}
        for (method, form), values in gaps.items():
            lines.append([world, f"{method}, {form}", str(len(values)), *staircase.written(values, ".3f")])
        ours, theirs = (next(key for key in reversed(gaps) if key[0] == method) for method in PLAN)
        without = "trades", TABLES["trades"]  # the same recipe as any form of A-ART, but for the term
        for other, name in {without: "the same without the term", theirs: "trades, both as chosen"}.items():
            apart = staircase.written(gaps[ours] - gaps[other], "+.3f")
            lines.append([world, f"a-art as chosen − {name}", str(len(gaps[ours])), *apart])
    return _grid(["world", "form", "seeds", *measures], lines)


def written(trials: list[dict], confirmed: list[dict]) -> str:
    """The ledger as a page: the forms over all worlds, what became of the chosen ones, then every trial."""
    worlds = list(dict.fromkeys(row["world"] for row in trials))
    parts = ["# The form of A-ART, chosen on validation splits", __doc__.split("\n\n")[2].strip()]
    for method in PLAN:
        lines = [[form, *(f"{m:.3f}" for m in (mean, *own))] for form, mean, own in chosen(trials, method)]
        parts += [f"## {method.upper()}: merit in each world", _grid(["form", "mean", *worlds], lines)]
    if confirmed:
        parts += ["## On the test splits, with seeds that no trial used", "± is half the 95 % interval (Student's t)."]
        parts.append(confirmed_table(confirmed))
    for world in worlds:
        about, lines = THREATS[world].described(), []
        for row in (row for row in trials if row["world"] == world):
            numbers = ("–" if row[key] is None else f"{row[key]:.3f}" for key in KEYS)
            lines.append([row["method"], row["form"], *numbers])
        head = f"## {world}: every trial, {about['norm']}, ε = {about['epsilon']:g}, seed 0, validation split"
        parts += [head, _grid(["method", "form", *KEYS], lines)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=Path, metavar="FOLDER", help="films as figures/real_frames.py makes them")
    parser.add_argument("--audioset", type=Path, metavar="FOLDER")
    parser.add_argument("--worlds", help="only these, with commas between")
    parser.add_argument("--confirm", type=int, default=3, metavar="N", help="seeds on the test splits (default 3)")
    parser.add_argument("--confirm-in", metavar="WORLDS", help="only these, with commas between")
    parser.add_argument("--out", type=Path, default=Path("runs/forms"), help="trials go here, one file each")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--redraw", action="store_true")
    options = parser.parse_args()
    if not options.redraw:
        folders = {"films": options.films, "audioset": options.audioset}
        worlds = [world for world in THREATS if world not in folders or folders[world]]
        worlds = options.worlds.split(",") if options.worlds else worlds
        work = partial(trial, folders=folders, out=options.out)

        def done(tasks: list[tuple]) -> list[dict]:
            found = dict(side_by_side(work, tasks, options.jobs or most(len(tasks))))
            return [found[task] for task in tasks]

        trials = done([(world, method, form) for world in worlds for method, forms in PLAN.items() for form in forms])
        forms = {method: dict.fromkeys((TABLES[method], chosen(trials, method)[0][0])) for method in PLAN}
        last = options.confirm_in.split(",") if options.confirm_in else worlds
        pairs = [(world, method, form) for world in last for method in PLAN for form in forms[method]]
        confirmed = done([(*pair, seed) for pair in pairs for seed in range(1, options.confirm + 1)])
        write_json(HERE / "forms.json", {"trials": trials, "confirmed": confirmed})
    with replacing(HERE / "forms.md") as file:
        file.write(written(**read_json(HERE / "forms.json")).encode())


if __name__ == "__main__":
    main()
