"""From results to paper: report.md and its tables, made from results.json alone."""

from collections import defaultdict
from pathlib import Path

from aart_lib.data.batch import LEVEL
from aart_lib.experiment.figures import attacks_of, draw, strongest
from aart_lib.experiment.flags import CHECKS
from aart_lib.experiment.recipes import TUNED
from aart_lib.experiment.summary import MEASURES, first_seed, ranked
from aart_lib.runtime.files import replacing

COLUMNS = (
    ("defense", "{name}"),
    ("clean", "{clean_gap:.3f}"),
    ("FGSM", "{fgsm_gap:.3f}"),
    ("PGD-20", "{pgd_gap:.3f}"),
    ("worst at ε", "**{worst_gap:.3f}**{interval}"),
    ("recovered", "{recovered_share}"),
    ("worst at 2ε", "{worst@2_gap:.3f}"),
    ("recovered", "{recovered_share@2}"),
    ("one frame", "{frames-1_gap:.3f}"),
    ("recovered", "{recovered_share_frames-1}"),
    ("steady attention, ε / 2ε", "{steady_gap:.3f} / {steady_gap@2:.3f}"),
    ("[CLS] drift", "{attention_drift:.3f}"),
    ("hijacked", "{attention_hijacked:.2f}"),
    ("entropy", "{attention_entropy:.2f}"),
    ("evidence, clean / attacked", "{evidence}"),
)
READING = """\
*worst*: GAP@20 when every video gets the attack that hurts it most; in brackets the 95 % interval, resampled over
videos and seeds. *PGD-20*: 20 steps (10 in the quick suite). *recovered*: share of the baseline's loss that the defense
wins back. *one frame*: the attacker may change a single frame, within {few:g} times ε. *steady attention*: the same
model with its attention held at the clean maps, attacked by someone who knows it: the most that steadying it could win.
*drift*: total variation between clean and attacked [CLS] attention of the last layer (0 = unmoved, 1 = all of it
moved). *hijacked*: share of it that the one attacked frame gained. *entropy*: of that attention, 1 = flat.
*evidence*: share of it on frames that show a label seen in under half of the video; uniform attention would have
{chance}. Attack, ε, loss form and weights are this project's reconstruction; the paper's are not public."""
SIMPLE = ("adversarial", "logit-pairing", "trades", "vat")  # extensions of adversarial training for images
# GAP on each model's own adversarial examples.
PAPER = {"Transformer": 0.729, "best simple extension": 0.82, "A-ART": 0.91}
PAPER_CLEAN = 0.91  # assumed: the abstract does not say it
SIZES = {"worst": "worst at ε", "worst@2": "worst at 2ε", "frames-1": "one frame"}


def _percent(share) -> str:
    return "–" if share is None else f"{share:.0%}"


def _cells(name: str, summary: dict) -> list[str]:
    """A line of the table: numbers are formatted by their column, what may be missing is a text already."""
    known = {"name": name, "interval": "", "evidence": "–"} | summary
    known |= {key: _percent(summary[key]) for key in MEASURES.values()}
    if summary["ci95"]:
        known["interval"] = " ({:.3f}–{:.3f})".format(*summary["ci95"])
    if "evidence_clean" in summary:
        known["evidence"] = "{evidence_clean:.2f} / {evidence_attacked:.2f}".format_map(summary)
    return [form.format_map(known) for _, form in COLUMNS]


def _grid(head, lines) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def table(summary: dict) -> str:
    """The summary as a Markdown table."""
    return _grid([head for head, _ in COLUMNS], [_cells(name, found) for name, found in summary.items()])


def heading(results: dict) -> str:
    """What was measured, on what, with what."""
    data, threat, seeds = results["data"], results["threat"], sorted({row["seed"] for row in results["rows"]})
    videos, calibration = data["videos"], threat.get("calibration")
    about = "the one that is stored with the model"
    if calibration:
        about = f"ε given by hand; the calibration target {calibration.get('target_ratio')} was not used"
    if calibration and calibration.get("reached"):
        about = (
            f"chosen on the validation split so that the baseline of seed 0 keeps {calibration['reached']:.3f} of its "
            f"clean GAP under PGD (target {calibration['target_ratio']}), then frozen"
        )
    stands_in = " (generated; it stands in for YouTube-8M)" if data["name"].startswith("synthetic") else ""
    if (variant := data.get("variant")) not in (None, "default"):
        stands_in += f", variant *{variant}*, on which nothing was tuned"
    if data["name"].partition(":")[0] not in TUNED:
        stands_in += " (nothing was tuned on it: every defense has the settings of the trials on synthetic data)"
    if bad := data.get("skipped"):
        stands_in += f", without {sum(found['records'] for found in bad.values())} bad records"
    return (
        f"Data: {data['name']}{stands_in}, {len(data['labels'])} labels, {videos['train']} training, "
        f"{videos['validation']} validation and {videos['test']} test "
        f"{'segments' if data.get('segments') else 'videos'}. Seeds: {', '.join(map(str, seeds))}.\n"
        f"Threat, in feature space: {threat['norm']}, ε = {threat['epsilon']:.4g} ({threat['epsilon'] / LEVEL:.2f} "
        f"byte steps of 4/255), {about}."
    )


def write_report(results: dict, out, name: str = "report.md") -> str:
    """Write the report and its figures; returns the table as text.

    Figures are named after the report, "report-short.md" → "short-table.png"; those of "report.md" after the data.
    """
    about = Path(name).stem.removeprefix("report").strip("-") or results["data"]["name"].replace(":", "-")
    pictures = defaultdict(str, draw(results, out, about))  # what was not drawn takes no place
    summary = results["summary"]
    chance = next((f"{s['evidence_chance']:.2f}" for s in summary.values() if "evidence_chance" in s), "–")
    few = results["rows"][0]["other"]["frames-1"]["threat"]["epsilon"] / results["threat"]["epsilon"]
    parts = [f"# Robustness of temporal attention: {results['data']['name']}", heading(results), table(summary)]
    parts += [READING.format(chance=chance, few=few), pictures["table"], *_ceiling(results)]
    parts += [pictures["drift"], pictures["evidence"]]
    parts += ["## Attacks", *_attacks(results["rows"]), pictures["attacks"], pictures["epsilon"]]
    parts += ["## A-ART against each other defense", *_comparisons(results)]
    parts += ["## Reasons to disbelieve", *_reasons(results["flags"]), pictures["training"]]
    parts += ["## Beside the paper", *_paper(summary), "## What would change our mind", _doubts(results)]
    with replacing(Path(out) / name) as file:
        file.write("\n\n".join(filter(None, parts)).encode() + b"\n")
    return f"{heading(results)}\n\n{table(summary)}"


def insert_results(readme, results: dict) -> None:
    """Put heading and table between ``<!-- results:NAME -->`` and ``<!-- end -->`` of a text. Raises: ValueError."""
    mark, stored = f"<!-- results:{results['data']['name']} -->", Path(readme).read_bytes().decode()
    before, found, rest = stored.replace("\r\n", "\n").partition(mark)
    if not found or "<!-- end -->" not in rest:
        raise ValueError(f"{readme} has no place for the table; it needs the lines {mark} and <!-- end -->")
    after = rest.partition("<!-- end -->")[2]
    text = f"{before}{mark}\n{heading(results)}\n\n{table(results['summary'])}\n<!-- end -->{after}"
    with replacing(readme) as file:
        file.write((text.replace("\n", "\r\n") if "\r\n" in stored else text).encode())


# ---------------------------------------------------------------- sections: each a list of paragraphs


def _ceiling(results: dict) -> list[str]:
    if not results["ceiling"]:
        return []
    gaps = {point["epsilon"]: point["gap"] for point in results["ceiling"]}
    certain = gaps[results["threat"]["epsilon"]]
    above = [name for name, s in results["summary"].items() if s["worst_gap"] > certain]
    return [
        f"*Matched filter*: a detector that knows the patterns and is told when evidence is visible, as no model is. "
        f"Clean it has {gaps[0.0]:.3f}; at ε it is certain to keep {certain:.3f} under every attack of that size. A "
        f"certificate is pessimistic, what attacks leave is optimistic: a model may lie above it. "
        f"Above it at ε: {', '.join(above) or 'none'}."
    ]


def _attacks(rows: list[dict]) -> list[str]:
    first, tried, parts = first_seed(rows), attacks_of(rows), []
    names, lowest = [row["defense"] for row in first], strongest(tried)
    if len(tried) > 3:
        lines = [
            [attack, *(_marked(found.get(name), lowest[name] == attack) for name in names)]
            for attack, found in tried.items()
        ]
        about = f"GAP under each attack within ε, seed {first[0]['seed']}; bold: the lowest of the column."
        parts = [about, _grid(["", *names], lines)]
    else:
        parts = [f"Tried within ε: {', '.join(tried)}. The suite *strong* tries some thirty attacks on seed 0."]
    free = {row["defense"]: row["attacked"].get("gradient-free") for row in first}
    if all(free.values()):
        pairs = (f"{n} {f['same_videos']['gap']:.3f} beside {f['same_videos']['pgd']:.3f}" for n, f in free.items())
        count = next(iter(free.values()))["videos"]
        parts.append(f"Gradient-free, on {count} videos only; beside it PGD on the same: {', '.join(pairs)}.")
    few = [key for key in first[0]["other"] if key.startswith("frames-")]
    lines = [[key, *(f"{row['other'][key]['gap']:.3f}" for row in first)] for key in sorted(few)]
    epsilon = first[0]["other"]["frames-1"]["threat"]["epsilon"]
    others = ", or as the row says" * any(key.count("-") > 1 for key in few)
    return [*parts, f"Few frames, each with ε = {epsilon:.4g}, chosen by trial{others}:", _grid(["", *names], lines)]


def _marked(gap: float | None, lowest: bool) -> str:
    if gap is None:
        return "–"
    return f"**{gap:.3f}**" if lowest else f"{gap:.3f}"


def _verdict(entry: dict) -> str:
    low, high = entry["ci95"]
    return "ahead" if low > 0 else "behind" if high < 0 else "open"


def _difference(entry: dict) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f}), p {:.3f}".format(entry["difference"], *entry["ci95"], entry["p_holm"])


def _comparisons(results: dict) -> list[str]:
    found, seeds = results["comparisons"], len({row["seed"] for row in results["rows"]})
    if not found:
        alone = "no other defense was judged beside A-ART" if "a-art" in results["summary"] else "A-ART was not trained"
        return [f"Nothing is compared: {alone} in this run."]
    others, cells = dict.fromkeys(entry["with"] for entry in found), {(e["with"], e["measure"]): e for e in found}
    lines = [[other, *(_difference(cells[other, measure]) for measure in SIZES)] for other in others]
    parts = ["A-ART minus the other, in GAP; 95 % interval, p corrected after Holm for the number of defenses."]
    parts.append(_grid(["", *SIZES.values()], lines))
    for measure, words in SIZES.items():
        groups = {v: [o for o in others if _verdict(cells[o, measure]) == v] for v in ("ahead", "behind", "open")}
        said = {"ahead": "A-ART is ahead of", "behind": "A-ART is behind", "open": "the interval includes zero for"}
        parts.append(f"*{words}*: " + "; ".join(f"{said[v]} {', '.join(g)}" for v, g in groups.items() if g) + ".")
    drawn = "videos and seeds" if seeds > 1 else "videos; one seed says nothing about others"
    return [
        *parts,
        f"Ahead and behind: the interval excludes zero. It resamples {drawn}. Seeds vary weights and training order, "
        "the data and their split are the same for all: the interval does not speak for other data.",
    ]


def _reasons(flags: list[dict]) -> list[str]:
    raised: dict[str, list[dict]] = {}
    for flag in flags:
        raised.setdefault(flag["name"], []).extend([flag] if flag["raised"] else [])
    lines = []
    for name, found in raised.items():
        values = ", ".join(f"{flag['defense']} seed {flag.get('seed', 0)}: {flag['value']:.3f}" for flag in found)
        lines += [f"- **{name}**, {found[0]['meaning']} (above {found[0]['threshold']:g}): {values}"] if found else []
    known = _grid(["check", "raised above", "meaning"], [[c.name, f"{c.threshold:g}", c.meaning] for c in CHECKS])
    folded = f"<details><summary>All {len(CHECKS)} checks</summary>\n\n{known}\n\n</details>"
    return ["\n".join(lines) or f"None of {len(raised)} checks raised a flag.", folded]


def _paper(summary: dict) -> list[str]:
    simple = [name for name in ranked(summary) if name in SIMPLE]
    ours, lines = {"Transformer": "standard", "best simple extension": (simple or [""])[0], "A-ART": "a-art"}, []
    for head, gap in PAPER.items():
        share, found = (gap - PAPER["Transformer"]) / (PAPER_CLEAN - PAPER["Transformer"]), summary.get(ours[head])
        here = ["–"] * 3
        if found:
            here = [ours[head], f"{found['worst_gap']:.3f}", _percent(found["recovered_share"])]
        lines.append([head, f"{gap:.1%}", f"~{round(share, 1):.0%}", *here])
    return [
        _grid(["", "paper, attacked GAP", "recovered", "ours", "worst GAP", "recovered"], lines),
        f"The paper's shares assume a clean GAP of about {PAPER_CLEAN:.0%}, which its abstract does not give. They are "
        "not comparable in absolute terms: data, attack, ε and labels differ, and ours is a reconstruction.",
    ]


def _doubts(results: dict) -> str:
    """What others would have to find, so that the first place changes hands."""
    order, tried = ranked(results["summary"]), len(attacks_of(results["rows"]))
    points = []
    if len(order) > 1:
        best, second = order[:2]
        lead = results["summary"][best]["worst_gap"] - results["summary"][second]["worst_gap"]
        points.append(  # a tie is said in the third digit
            f"An attack within ε, beyond the {tried} tried, that takes {max(0.001, lead):.3f} GAP more from {best} "
            f"than from {second}."
        )
    undecided = [e["with"] for e in results["comparisons"] if e["measure"] == "worst" and _verdict(e) == "open"]
    if undecided:
        points.append(f"More seeds or test videos: at ε A-ART is not told apart from {', '.join(undecided)}.")
    generated = results["data"]["name"].startswith("synthetic")
    real = "Genuine YouTube-8M frames: these videos are generated" if generated else "Data other than these"
    points.append(f"{real}; another order of the defenses there would count for more than this table.")
    points.append("The authors' code, attack or ε: our reconstruction of the attention term may not be theirs.")
    return "\n".join(f"- {point}" for point in points)
