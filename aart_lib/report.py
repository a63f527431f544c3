"""From results to paper: report.md and figures, drawn from results.json alone; what `describe` prints."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from aart_lib import checkpoint, plots, synthetic
from aart_lib.attacks import ThreatModel, perturb, pgd
from aart_lib.data import collate
from aart_lib.evaluate import few_frames_epsilon, generator_for, probabilities
from aart_lib.records import replacing
from aart_lib.reproduce import PRESETS, open_data

COLUMNS = (
    ("defense", lambda name, s: name),
    ("clean", lambda name, s: f"{s['clean_gap']:.3f}"),
    ("worst at ε", lambda name, s: f"**{s['worst_gap']:.3f}**{_interval(s)}"),
    ("recovered", lambda name, s: _percent(s["recovered_share"])),
    ("at 2ε", lambda name, s: f"{s['pgd@2_gap']:.3f}"),
    ("recovered", lambda name, s: _percent(s["recovered_share@2"])),
    ("one frame", lambda name, s: f"{s['frames-1_gap']:.3f}"),
    ("steady attention, ε / 2ε", lambda name, s: f"{s['steady_gap']:.3f} / {s['steady_gap@2']:.3f}"),
    ("[CLS] drift", lambda name, s: f"{s['attention_drift']:.3f}"),
    ("entropy", lambda name, s: f"{s['attention_entropy']:.2f}"),
    ("evidence, clean / attacked", lambda name, s: _evidence(s)),
)
READING = """\
*worst at ε*: GAP@20 when every video gets the attack that hurts it most. *recovered*: share of the baseline's loss
that the defense wins back. *steady attention*: the same model with its attention held at the clean maps, attacked by
someone who knows it: the most that steadying attention could win. *drift*: total variation between clean and attacked
[CLS] attention of the last layer (0 = unmoved, 1 = all of it moved). *entropy*: of that attention, 1 = flat.
*evidence*: share of it on frames that show a label seen in under half of the video; uniform attention would have
{chance}. Attack, ε, loss form and weights are this project's reconstruction; the paper's are not public."""


def _percent(share) -> str:
    return "–" if share is None else f"{share:.0%}"


def _interval(summary: dict) -> str:
    return f" ({summary['ci95'][0]:.3f}–{summary['ci95'][1]:.3f})" if summary["ci95"] else ""


def _evidence(summary: dict) -> str:
    return (
        f"{summary['evidence_clean']:.2f} / {summary['evidence_attacked']:.2f}" if "evidence_clean" in summary else "–"
    )


def table(summary: dict) -> str:
    """The summary as a Markdown table."""
    lines = [[head for head, _ in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [[cell(name, values) for _, cell in COLUMNS] for name, values in summary.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def heading(results: dict) -> str:
    """What was measured, on what, with what."""
    data, threat, seeds = results["data"], results["threat"], max(row["seed"] for row in results["rows"]) + 1
    videos, calibration = data["videos"], threat["calibration"] or {}
    about = f"ε given by hand; the calibration target {calibration.get('target_ratio')} was not used"
    if calibration.get("reached"):
        about = (
            f"chosen on the validation split so that the baseline of seed 0 keeps {calibration['reached']:.3f} of its "
            f"clean GAP under PGD (target {calibration['target_ratio']}), then frozen"
        )
    stands_in = " (generated; it stands in for YouTube-8M)" if data["name"] == "synthetic" else ""
    return (
        f"Data: {data['name']}{stands_in}, {len(data['labels'])} labels, {videos['train']} training, "
        f"{videos['validation']} validation and {videos['test']} test videos. "
        f"Seeds: {', '.join(map(str, range(seeds)))}.\n"
        f"Threat, in feature space: {threat['norm']}, ε = {threat['epsilon']:.4g} ({threat['epsilon_levels']:.2f} byte "
        f"steps of 4/255), {about}."
    )


def write_report(results: dict, out, name: str = "report.md") -> str:
    """Write the report and its figures; returns the table as text."""
    out, summary = Path(out), results["summary"]
    chance = next((f"{s['evidence_chance']:.2f}" for s in summary.values() if "evidence_chance" in s), "–")
    raised = [flag for flag in results["flags"] if flag["raised"]]
    flagged = "\n".join(
        f"- {flag['name']}, {flag['defense']} seed {flag.get('seed', 0)}: {flag['value']:.3f} > {flag['threshold']}: "
        f"{flag['meaning']}"
        for flag in raised
    )
    pictures = draw(results, out)
    text = "\n\n".join(
        [
            f"# Robustness of temporal attention: {results['data']['name']}",
            heading(results),
            table(summary),
            READING.format(chance=chance),
            "## Reasons to disbelieve\n\n" + (flagged or f"None of {len(results['flags'])} checks raised a flag."),
            *(f"![{alt}]({picture}.png)" for picture, alt in pictures.items()),
        ]
    )
    with replacing(out / name) as file:
        file.write(text.encode() + b"\n")
    return f"{heading(results)}\n\n{table(summary)}"


def insert_results(readme, results: dict) -> None:
    """Put heading and table between ``<!-- results:NAME -->`` and ``<!-- end -->`` of a text. Raises: ValueError."""
    readme, mark = Path(readme), f"<!-- results:{results['data']['name']} -->"
    before, found, rest = readme.read_text(encoding="utf-8").partition(mark)
    if not found or "<!-- end -->" not in rest:
        raise ValueError(f"{readme} has no place for the table; it needs the lines {mark} and <!-- end -->")
    after = rest.partition("<!-- end -->")[2]
    text = f"{before}{mark}\n{heading(results)}\n\n{table(results['summary'])}\n<!-- end -->{after}"
    with replacing(readme) as file:
        file.write(text.encode())


def draw(results: dict, out) -> dict[str, str]:
    """Draw the figures of results.json; returns {file name without .png: alternative text}."""
    rows, out, data = results["rows"], Path(out), results["data"]["name"]
    names = list(dict.fromkeys(row["defense"] for row in rows))
    kept = {name: s["worst_gap"] / s["clean_gap"] for name, s in results["summary"].items()}
    best = max(kept, key=lambda name: results["summary"][name]["worst_gap"])
    finding = (
        f"Of its clean GAP the baseline keeps {kept['standard']:.0%} under the worst attack, {best} {kept[best]:.0%}"
    )
    figures = {
        f"{data}-table": (
            plots.plot_table_bars(rows, title=finding),
            "Bars: clean, worst attacked and steady-attention GAP of each defense",
        ),
        f"{data}-epsilon": (
            plots.plot_robustness_curve(
                {name: _curve([row for row in rows if row["defense"] == name]) for name in names},
                calibrated=results["threat"]["epsilon"],
                levels=results["threat"]["norm"] == "linf",
                title="GAP falls with the size of the attack",
            ),
            "Lines: GAP of each defense against the size of the attack",
        ),
        f"{data}-drift": (
            plots.plot_drift(
                rows,
                second="evidence_share" if rows[0]["evidence_share"] else "attention_entropy",
                title="Does robustness come with steadier attention?",
            ),
            "Points: worst GAP, and evidence share or entropy, against the drift of the [CLS] attention",
        ),
    }
    if all(row.get("history") for row in rows):
        histories = {
            n: [e | {"seed": r["seed"]} for r in rows if r["defense"] == n for e in r["history"]] for n in names
        }
        title = "Validation GAP while training"
        figures[f"{data}-training"] = (
            plots.plot_learning_curves(histories, title=title),
            "Lines: validation GAP by epoch, clean and attacked",
        )
    if rows[0]["evidence_share"]:
        figures[f"{data}-evidence"] = (
            plots.plot_evidence_share(rows, title="Where attention lies, before and under attack"),
            "Lines: share of attention on evidence, clean and attacked",
        )
    for name, (figure, _) in figures.items():
        plots.save(figure, out / f"{name}.png")
    return {name: alt for name, (_, alt) in figures.items()}


def _curve(rows: list[dict]):
    """ε [E] and GAP [S,E] of one defense over its seeds."""
    points = [
        {0.0: row["clean"]["gap"]}
        | {o["threat"]["epsilon"]: o["gap"] for o in row["other"].values() if o["threat"]["max_frames"] is None}
        for row in rows
    ]
    for row, point in zip(rows, points, strict=True):
        doubled = row["other"]["pgd@2"]["threat"]["epsilon"]
        point[doubled / 2] = row["attacked"]["pgd"]["gap"]
    epsilons = sorted(points[0])
    return epsilons, [[point[epsilon] for epsilon in epsilons] for point in points]


# ---------------------------------------------------------------- attention under attack


def draw_attention(folder, out) -> None:
    """The README's pictures: one test video, its attention before and under a one-frame attack, baseline and A-ART.

    Shown is the video of the 100 first test videos that misleads the baseline most: a strong example, not a typical
    one.
    """
    models = {name: checkpoint.load(Path(folder) / f"{name}-seed0.safetensors") for name in ("standard", "a-art")}
    notes = models["a-art"][1]
    splits = open_data(notes["data"])
    names = synthetic.names(synthetic.SETTINGS["default"])
    threat = ThreatModel(notes["threat"]["norm"], notes["threat"]["epsilon"])
    attack = pgd(ThreatModel(threat.norm, few_frames_epsilon(threat), 1))
    views = {name: one_frame_view(model, splits.test, attack) for name, (model, _) in models.items()}
    chosen = _most_misled(views["standard"], splits.test)
    for name, view in views.items():
        item, frames = splits.test[chosen], len(splits.test[chosen].frames)
        figure = plots.plot_timeline(
            item.frames.numpy(),
            item.evidence.numpy(),
            [names[label] for label in splits.labels],
            attention={side: view["attention"][side][chosen, :frames].numpy() for side in ("clean", "attacked")},
            scores={side: view["scores"][side][chosen].numpy() for side in ("clean", "attacked")},
            attacked_frames=view["touched"][chosen, :frames].numpy(),
            labels=item.labels.numpy(),
            title=f"{'Baseline' if name == 'standard' else 'A-ART'}: one attacked frame, and where attention goes",
        )
        plots.save(figure, Path(out) / f"attention-under-attack-{name}.png")
    _animate({name: model for name, (model, _) in models.items()}, splits, chosen, threat, names, out)


def _most_misled(view: dict, dataset) -> int:
    """The video with the largest product of attention moved and probability that a true label lost."""
    labels = torch.stack([dataset[i].labels for i in range(len(view["touched"]))])
    lost = ((view["scores"]["clean"] - view["scores"]["attacked"]) * labels).amax(1)
    moved = (view["attention"]["clean"] - view["attention"]["attacked"]).abs().sum(1) / 2
    return int((lost * moved).argmax())


def _animate(models: dict, splits, chosen: int, threat: ThreatModel, names: list[str], out) -> None:
    """The same video while ε grows from 0 to three times the table's, all frames attacked."""
    from aart_lib.widgets import animate_attention, sweep

    one, factors = collate([splits.test[chosen]]), np.linspace(0, 3, 13)
    views = {name: sweep(model, one, threat, factors.tolist()) for name, model in models.items()}
    path = Path(out) / "attention-while-epsilon-grows.gif"
    animate_attention(path, views, factors * threat.epsilon, one.evidence[0], one.labels[0], names)


def one_frame_view(model, dataset, attack, *, videos: int = 100) -> dict:
    """Attention [N,T] (last layer's [CLS] row, mean over heads) and probabilities [N,C], clean and attacked."""
    batch = collate([dataset[i] for i in range(min(videos, len(dataset)))])
    frames = perturb(model, batch, attack, generator=generator_for("picture"))
    view = {"attention": {}, "scores": {}, "touched": (frames != batch.frames).any(2)}
    with torch.no_grad():
        for side, shown in (("clean", batch.frames), ("attacked", frames)):
            output = model(shown, batch.mask, return_attention=True)
            view["attention"][side] = output.attention[-1][:, :, 0, 1:].mean(1)
            view["scores"][side] = probabilities(output.logits)
    return view


# ---------------------------------------------------------------- describe


def describe(name: str, data_dir=None, *, labels: int | None = None, preset=PRESETS["small"], videos: int = 500) -> str:
    """Statistics of a data set as text; the embedded one stands beside genuine YouTube-8M figures."""
    splits = open_data(name, data_dir, labels=labels, preset=preset)
    sizes = f"{len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test videos"
    left_out = splits.train.left_out + splits.test.left_out
    counts = Counter(min(len(set(entry.labels) & set(splits.labels)), 6) for entry in splits.train.entries)
    total = sum(counts.values())
    lines = [
        f"{name}: {sizes}, {len(splits.labels)} labels, {splits.spec.dims} numbers a frame; {left_out} left out",
        "labels a video: " + ", ".join(f"{k}{'+' if k == 6 else ''}: {counts[k] / total:.1%}" for k in sorted(counts)),
    ]
    if name == "synthetic":
        lines.insert(0, "Generated data that stands in for YouTube-8M, calibrated on facts about genuine videos.")
    if splits.spec.video_level:
        return "\n".join(lines)
    items = [splits.test[i] for i in range(min(videos, len(splits.test)))]
    dims = {key: used for key, (_, used) in splits.spec.features.items()}
    window = min(24, max(len(item.frames) for item in items))
    found = synthetic.statistics([item.frames.numpy() for item in items], dims, window=window)
    genuine = synthetic.facts()["frame_level"]["windows"]
    lines.append(
        f"frame statistics of {len(items)} test videos, in windows of {window} frames; genuine: one video, n = 1"
    )
    for part, here in found.items():
        if isinstance(here, dict):
            lines += _beside(part, here, genuine.get(part) if name != "audioset" else None)
    if items[0].evidence is not None:
        shares = [float(i.evidence[:, c].float().mean()) for i in items for c in np.flatnonzero(i.labels.numpy())]
        brief = sum(share < 0.2 for share in shares) / len(shares)
        lines.append(
            f"evidence: a label is visible in {np.mean(shares):.0%} of the frames; {brief:.0%} of them in under a fifth"
        )
    return "\n".join(lines)


def _beside(part: str, here: dict, genuine: dict | None) -> list[str]:
    lines = [f"  {part:16} {'here':>8} {'genuine':>8}"]
    for key, value in here.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for lag, number in pairs:
            other = (genuine or {}).get(key, math.nan)
            other = other.get(lag, math.nan) if isinstance(other, dict) else other
            shown = "–" if math.isnan(other) else f"{other:.3f}"
            lines.append(f"    {key + (' lag ' + lag if lag else ''):20} {number:>8.3f} {shown:>8}")
    return lines
