"""Ideas that did not become defenses of the library, each tried once: `make explore`.

Every variant is trained with seed 0 and judged on the *validation* split by the standard suite, so the numbers are for
choosing, not for claiming. The ledger, explored-DATA.json, is gone on with when the script is run again.

Also an example of how to try an idea of your own: a new distance between attention maps is an entry of
`attention.DIVERGENCES`, a new term one of `losses.TERMS`, a new attack objective one of `attacks.OBJECTIVES`; what
changes the training step itself is a subclass of its run.
"""

import argparse
import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from voting import THREATS

from aart_lib import attacks, attention, losses, training
from aart_lib.attention import attention_divergence, attention_entropy, rollout
from aart_lib.data import synthetic
from aart_lib.data.batch import LEVEL
from aart_lib.data.catalog import open_data, open_splits
from aart_lib.data.formats import SPECS
from aart_lib.experiment.figures import rank_correlation
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import PRESETS, model_config, train_config
from aart_lib.experiment.recipes import tuned
from aart_lib.losses import Defense, bernoulli_kl
from aart_lib.runtime.files import replacing, write_json
from aart_lib.viz import plots

SYMMETRIC = attention.DIVERGENCES["symmetric-kl"]

# ---------------------------------------------------------------- other distances between rows of attention [...,K]


def scores_apart(p, q):
    """Squared difference of the scores before the softmax, which are the logs up to a constant a row."""
    real = (p > 0) & (q > 0)
    apart = (attention._log(p) - attention._log(q)) * real
    centered = (apart - apart.sum(-1, keepdim=True) / real.sum(-1, keepdim=True)) * real
    return centered.square().sum(-1)


def smoothed(p, q):
    """Neighboring frames may swap weight: maps are averaged over three frames first ([CLS] stays apart)."""
    blur = lambda m: torch.cat([m[..., :1], F.avg_pool1d(m[..., 1:].flatten(0, -2), 3, 1, 1).view_as(m[..., 1:])], -1)  # noqa: E731
    return SYMMETRIC(blur(p), blur(q))


def sharpened(p, q):
    """The attacked map follows a sharper clean one, as self-distillation does against collapse."""
    target = p.square() / p.square().sum(-1, keepdim=True)
    return SYMMETRIC(target.detach(), q)


attention.DIVERGENCES |= {"scores": scores_apart, "smoothed": smoothed, "sharpened": sharpened}

# ---------------------------------------------------------------- other terms

ENTROPY = 0.60  # of the baseline's maps on synthetic data: flatter than this costs


def entropy_held(defense, clean, attacked, labels, mask):
    """The attention term, and a price for maps flatter than the baseline's."""
    flat = sum((attention_entropy(o.attention, mask) - ENTROPY).clamp_min(0).square() for o in (clean, attacked))
    return attention_divergence(clean.attention, attacked.attention, mask) + 10 * flat


def rolled_out(defense, clean, attacked, labels, mask):
    """Attention through all layers, from the frames to [CLS]."""
    shares = [rollout(output.attention) for output in (clean, attacked)]
    return SYMMETRIC(*(share / share.sum(1, keepdim=True) for share in shares))


attacks.OBJECTIVES["kl-attention"] = attacks.Objective(
    lambda output, clean, batch: (
        bernoulli_kl(clean.logits, output.logits) + attention_divergence(clean.attention, output.attention, batch.mask)
    )
)

# ---------------------------------------------------------------- other ways to train


class Averaged(training.Run):
    """Judged are the weights averaged over the last hundred steps or so."""

    def learn(self, parts, videos, threat):
        values = super().learn(parts, videos, threat)
        new = self.network.state_dict()
        self.average = getattr(self, "average", None) or deepcopy(new)
        for name, weight in self.average.items():
            weight.lerp_(new[name], 0.01)
        return values

    def one_epoch(self, bar, state=None):
        super().one_epoch(bar, state)
        if self.epoch == self.config.epochs:
            self.network.load_state_dict(self.average)


class Teacher(training.Run):
    """Attacked maps follow the clean maps of a moving average of the network, which gives no way."""

    teacher = None

    def learn(self, parts, videos, threat):
        self.teacher = self.teacher or deepcopy(self.network)
        values = super().learn(parts, videos, threat)
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
                old.lerp_(new, 0.01)
        return values

    def forward(self, frames, batch):
        output = super().forward(frames, batch)
        if frames is not batch.frames:
            return output
        with torch.no_grad():
            return output._replace(attention=self.teacher(frames, batch.mask, return_attention="cls").attention)


class Noisy(training.Run):
    """Gaussian noise of a byte step and a half on every frame, clean and attacked."""

    def gradients(self, batch, threat, part):
        drawn = torch.randn(batch.frames.shape, generator=part.generator) * 1.5 * LEVEL * batch.mask[..., None]
        return super().gradients(replace(batch, frames=batch.frames + drawn), threat, part)


class Dropped(training.Run):
    """A fifth of the frames cannot be attended to, drawn anew in each step."""

    def gradients(self, batch, threat, part):
        kept = batch.mask & (torch.rand(batch.mask.shape, generator=part.generator) > 0.2)
        kept[:, 0] |= ~kept.any(1)
        return super().gradients(replace(batch, mask=kept, frames=batch.frames * kept[..., None]), threat, part)


# ---------------------------------------------------------------- the list


@dataclass(frozen=True)
class Variant:
    """One idea: a defense with changes, another run, another model, more videos."""

    base: str = "a-art"
    changes: dict | None = None
    beta: float | None = None
    term: object = None  # in place of losses.TERMS["attention"]
    run: type = training.Run
    model: dict | None = None
    videos: int | None = None  # for training, of the synthetic data

    def defense(self, data: str) -> tuple[Defense, dict]:
        recipe, settings = tuned(data, self.base)
        if self.beta is not None:
            recipe = replace(recipe, weights=dict(recipe.weights) | {"attention": self.beta})
        return replace(recipe, **self.changes or {}), settings


FORMS = {
    "squared differences of scores, β=.03": Variant(changes={"kind": "scores"}, beta=0.03),
    "squared differences of scores, β=.1": Variant(changes={"kind": "scores"}, beta=0.1),
    "Jensen-Shannon, β=1": Variant(changes={"kind": "jensen-shannon"}, beta=1.0),
    "squared L2, β=3": Variant(changes={"kind": "squared-l2"}, beta=3.0),
    "smoothed over 3 frames": Variant(changes={"kind": "smoothed"}),
    "rollout, β=1": Variant(changes={"rows": "all"}, beta=1.0, term=rolled_out),
    "sharpened target": Variant(changes={"kind": "sharpened"}),
    "entropy held": Variant(term=entropy_held),
    "entropy held, β=1": Variant(term=entropy_held, beta=1.0),
    "a teacher's maps": Variant(run=Teacher),
    "a teacher's maps, β=1": Variant(run=Teacher, beta=1.0),
    "attack on predictions and maps": Variant(changes={"objective": "kl-attention"}),
}
BOTH = ("trades", "a-art")
LEVERS = {
    "weights averaged": {"run": Averaged},
    "noise on the frames": {"run": Noisy},
    "a fifth of the frames dropped": {"run": Dropped},
    "pooled by the mean": {"changes": {"model": {"pooling": "mean"}}},
}
MORE = {"twice as wide": {"model": {"width": 128}}, "twice the videos": {"videos": 7000}}
REFERENCES = {name: Variant(name) for name in ("standard", "adversarial", "logit-pairing", *BOTH)}
TRAINED = {f"{base}, {name}": Variant(base, **how) for name, how in LEVERS.items() for base in BOTH}
SCALED = {f"{base}, {name}": Variant(base, **how) for name, how in MORE.items() for base in ("standard", *BOTH)}
SHORT = {key: FORMS[key] for key in ("a teacher's maps, β=1", "entropy held", "squared differences of scores, β=.03")}
PLAN = {"synthetic": REFERENCES | FORMS | TRAINED | SCALED, "audioset": REFERENCES | TRAINED | SHORT}


def splits_of(data: str, data_dir, variant: Variant):
    if data == "audioset":
        return open_data(data, data_dir, labels=50)
    if variant.videos is None:
        return open_data(data)
    more = replace(synthetic.SETTINGS["default"], train_videos=variant.videos)
    return open_splits(SPECS["synthetic"], synthetic.ensure(more))


def run(name: str, variant: Variant, data: str, data_dir) -> dict:
    """Train one variant and judge it on the validation split."""
    splits, threat = splits_of(data, data_dir, variant), THREATS[data]
    recipe, settings = variant.defense(data)
    term = losses.TERMS["attention"]
    losses.TERMS["attention"] = variant.term or term
    try:
        preset = replace(PRESETS["small"], model=variant.model or {})
        config = train_config(splits, preset, **settings)
        model, _ = training.train(
            recipe, splits, model_config(splits, preset), threat, config, progress=name, kind=variant.run
        )
    finally:
        losses.TERMS["attention"] = term
    row = evaluate(model, splits.validation, threat, progress=False)
    return {
        "variant": name,
        "base": variant.base,
        "clean": row["clean"]["gap"],
        "worst": row["worst"]["gap"],
        "worst@2": row["other"]["worst@2"]["gap"],
        "one frame": row["other"]["frames-1"]["gap"],
        "steady": row["steady_attention"]["gap"],
        "steady@2": row["steady_attention"]["gap@2"],
        "drift": row["attention_drift"],
        "hijacked": row["attention_hijacked"],
        "entropy": row["attention_entropy"],
        "evidence": row["evidence_share"] and row["evidence_share"]["attacked"],
        "videos": [len(splits.train), len(splits.validation)],
    }


def mechanism(rows: list[dict]):
    """GAP lost against drift and against evidence share, a point a variant; above at 2ε, below to one frame."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), sharex="col", sharey="row", layout="constrained")
    looks = {"standard": ("X", "black"), "trades": ("^", "#56B4E9"), "a-art": ("D", "#009E73")}
    for x, column in (("drift", 0), ("evidence", 1)):
        for y, ax in (("worst@2", axes[0, column]), ("one frame", axes[1, column])):
            for row in rows:
                marker, color = looks.get(row["base"], ("p", "#E69F00"))
                named = {"standard": "baseline", "trades": "TRADES and variants", "a-art": "A-ART and variants"}
                label = named.get(row["base"], "other adversarial training")
                ax.plot(row[x], row["clean"] - row[y], marker, color=color, ms=7, mec="white", label=label)
            ax.set_yscale("log")
            ax.set_yticks([0.05, 0.1, 0.2, 0.5], [".05", ".1", ".2", ".5"])
            ax.minorticks_off()
            ax.grid(alpha=0.4)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("GAP lost at 2ε")
    axes[1, 0].set_ylabel("GAP lost to one frame")
    axes[1, 0].set_xlabel("drift of the last [CLS] row under PGD")
    axes[1, 1].set_xlabel("share of attention on evidence, attacked")
    shown = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, frameon=False)
    defended = [row for row in rows if row["base"] != "standard"]
    rho = [
        rank_correlation([row["drift"] for row in defended], [row["clean"] - row[y] for row in defended])
        for y in ("worst@2", "one frame")
    ]
    title = f"Drift says {'little' if abs(rho[0]) < 0.5 else 'much'} about GAP lost at 2ε (ρ {rho[0]:+.2f})"
    title += f", more about one frame (ρ {rho[1]:+.2f});\n{len(defended)} defended models, one seed, log scale"
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    return figure


def table(rows: list[dict]) -> str:
    """The ledger as a Markdown table."""
    keys = ("clean", "worst", "worst@2", "one frame", "steady@2", "drift", "hijacked", "entropy", "evidence")
    lines = [["variant", *keys], ["---"] * 10]
    lines += [[row["variant"], *("–" if row[k] is None else f"{row[k]:.3f}" for k in keys)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="synthetic", choices=PLAN)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*", help="variants by name; default: all")
    options = parser.parse_args()
    path, threat = options.out / f"explored-{options.data}.json", THREATS[options.data]
    about = {"data": options.data, "split": "validation", "seed": 0, "suite": "standard"}
    about["threat"] = {"norm": threat.norm, "epsilon": threat.epsilon}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for name in options.only if options.only is not None else PLAN[options.data]:
        if not any(row["variant"] == name for row in rows):
            rows.append(run(name, PLAN[options.data][name], options.data, options.data_dir))
            write_json(path, about | {"rows": rows})
    with replacing(options.out / f"explored-{options.data}.md") as file:
        file.write(f"# Ideas tried once on {options.data}, validation split, seed 0\n\n{table(rows)}\n".encode())
    if options.data == "synthetic":
        plots.save(mechanism(rows), options.out / "explored-mechanism.png")
    print(table(rows))


if __name__ == "__main__":
    main()
