"""plots.py: what the figures show, and that they are drawn for every shape of input and stored whole."""

import itertools
import os
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from aart_lib.losses import DEFENSES

matplotlib.use("Agg")
plots = pytest.importorskip("aart_lib.viz.plots")
style = pytest.importorskip("aart_lib.viz.style")
plt = plots.plt

TIME, CLASSES = 12, 4
RNG = np.random.default_rng(0)
FRAMES = RNG.uniform(-2, 2, (TIME, 20))
EVIDENCE = np.zeros((TIME, CLASSES), bool)
EVIDENCE[2:5, 1] = EVIDENCE[7:, 3] = EVIDENCE[0, 3] = True
LABELS = ["Game", "Car", "Food", "A name that is far too long for the space it has"]
ATTENTION = {"clean": np.full(TIME, 1 / TIME), "attacked": RNG.dirichlet(np.ones(TIME))}
SCORES = {"clean": [0.1, 0.9, 0.2, 0.8], "attacked": [0.7, 0.2, 0.2, 0.1]}


def row(defense, seed, **more):
    shares = {"clean": 0.6, "attacked": 0.4, "chance": 0.2}
    measured = {"attention_drift": 0.1, "attention_entropy": 2.0, "evidence_share": shares}
    return (
        {"defense": defense, "seed": seed, "clean": {"gap": 0.9}, "worst": {"gap": 0.5 + 0.1 * seed}} | measured | more
    )


def rows(seeds):
    steady = {"steady_attention": {"gap": 0.8}}
    return [
        row(name, seed, **(steady if name == "a-art" else {}))
        for name in ("standard", "a-art")
        for seed in range(seeds)
    ]


def curve(seeds=1):
    return [
        {"epoch": e, "clean": 0.5 + e / 20, "attacked": e / 20, "seed": s} for e in range(1, 6) for s in range(seeds)
    ]


SINGLE = {
    "perturbation": lambda **o: plots.plot_perturbation(FRAMES, np.arange(TIME) < 9, evidence=EVIDENCE[:, 1], **o),
    "loss": lambda **o: plots.plot_loss_terms(
        [{"epoch": 1, "task": 2.0}, {"epoch": 2, "task": 1.0, "robust": 3.0}], **o
    ),
    "robustness": lambda **o: plots.plot_robustness_curve({"trades": ([0, 0.1], [0.9, 0.2])}, calibrated=0.05, **o),
    "table": lambda **o: plots.plot_table_bars(rows(1), **o),
    "share": lambda **o: plots.plot_evidence_share(rows(2), **o),
    "quantization": lambda **o: plots.plot_quantization(**o),
    "autocorrelation": lambda **o: plots.plot_autocorrelation(
        {"embedded": {1: 0.4, 5: 0.1}, "genuine": {"1": 0.4}}, **o
    ),
}
WHOLE = {
    "film": lambda **o: plots.plot_timeline(FRAMES, **o),
    "video": lambda **o: plots.plot_timeline(FRAMES, EVIDENCE, LABELS, attacked_frames=[3], **o),
    "attacked": lambda **o: plots.plot_timeline(FRAMES, EVIDENCE, LABELS, attention=ATTENTION, scores=SCORES, **o),
    "scores": lambda **o: plots.plot_timeline(FRAMES, None, LABELS, scores=SCORES, labels=[0, 1, 0, 1], **o),
    "grid": lambda **o: plots.plot_attention_grid({"a": ATTENTION, "b": ATTENTION}, evidence=EVIDENCE[:, 1], **o),
    "heads": lambda **o: plots.plot_attention_grid({"a": {"x": FRAMES[:, :3].T ** 2}}, **o),
    "learning": lambda **o: plots.plot_learning_curves({"vat": curve(), "unheard-of": curve()}, **o),
    "drift": lambda **o: plots.plot_drift(rows(1), second="attention_entropy", **o),
    "dataset": lambda **o: plots.plot_dataset([1, 2, 2], [9, 10, 10], [0.5, 0.2, 0.1], **o),
}


def texts(fig):
    return [text.get_text() for text in fig.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("draw", [*SINGLE.values(), *WHOLE.values()], ids=[*SINGLE, *WHOLE])
def test_every_figure_is_white_titled_handed_back_closed_and_drawable(draw, tmp_path):
    with plt.style.context("dark_background"):
        fig = draw(title="The finding")
    assert isinstance(fig, Figure)
    assert "The finding" in texts(fig)
    assert matplotlib.colors.to_hex(fig.get_facecolor()) == "#ffffff"
    assert all(matplotlib.colors.to_hex(ax.get_facecolor()) in ("#ffffff", "#222222") for ax in fig.axes)
    assert fig.get_size_inches()[0] == 9
    assert plt.get_fignums() == []
    plots.save(fig, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


OTHERS = {"text.usetex": True, "savefig.dpi": 30, "savefig.bbox": "tight", "savefig.format": "pdf", "font.size": 30}
OTHERS |= {"axes.grid": True, "lines.linewidth": 9, "figure.dpi": 20, "savefig.facecolor": "red", "xtick.top": True}


@pytest.mark.parametrize("name", ["loss", "attacked", "heads", "drift"])
def test_a_users_own_settings_change_no_figure_and_stay_as_they_are(name, tmp_path):
    draw = (SINGLE | WHOLE)[name]
    plots.save(draw(), tmp_path / "plain.png")
    with plt.rc_context(OTHERS):
        before, fig = dict(plt.rcParams), draw()
        plots.save(fig, tmp_path / "other.png")
        shown = fig._repr_png_()  # in a notebook
        fig.savefig(tmp_path / "shown")
        assert dict(plt.rcParams) == before
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
    assert shown[:4] == (tmp_path / "shown.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("draw", SINGLE.values(), ids=SINGLE)
def test_axes_that_are_given_are_drawn_on(draw):
    fig, ax = plt.subplots()
    assert draw(ax=ax, title="Here") is fig
    assert "Here" in (ax.get_title(), ax.get_title(loc="left"))  # whichever style was set before
    plt.close(fig)


def test_saved_pictures_are_reproducible_and_whole(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        plots.save(plots.plot_quantization(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    fig = plots.plot_quantization()
    monkeypatch.setattr(fig, "savefig", lambda file, **options: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        plots.save(fig, tmp_path / "c.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]
    with pytest.raises(ValueError, match="PNG"):
        plots.save(fig, tmp_path / "c.svg")


def lightness_and_color(name: str) -> np.ndarray:
    """CIE L*a*b* of a look's color, in which distances are about those that eyes see."""
    rgb = np.array(matplotlib.colors.to_rgb(name))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(linear @ [[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8727]])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_defense_has_a_color_of_its_own_and_none_looks_clean_or_attacked():
    colors = [plots.CLEAN, plots.ATTACKED, *(plots.defense_style(name)["color"] for name in DEFENSES)]
    for one, other in itertools.combinations(map(lightness_and_color, colors), 2):
        assert np.linalg.norm(one - other) > 15
    markers = {plots.defense_style(name)["marker"] for name in style.NAMES}
    assert len(markers) == len(style.NAMES) and not markers & {"o", "s"}


@pytest.mark.parametrize("name", ["uniform-attention", "model X", "mine", "é"])
def test_an_unknown_defense_always_looks_the_same_and_like_no_known_one(name):
    look = plots.defense_style(name)
    assert look == plots.defense_style(name) and matplotlib.colors.is_color_like(look["color"])
    assert look["color"] not in {*plots.DEFENSE_COLORS.values(), plots.CLEAN, plots.ATTACKED}


def test_tensors_are_drawn_as_arrays_are_without_a_warning():
    numbers = {key: torch.as_tensor(value) for key, value in ATTENTION.items()}
    scores = {key: torch.tensor(value) for key, value in SCORES.items()}
    about = {"labels": torch.tensor([0, 1, 0, 1]), "attacked_frames": torch.arange(TIME) == 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_timeline(*map(torch.tensor, (FRAMES, EVIDENCE)), LABELS, attention=numbers, scores=scores, **about)
        plots.plot_attention_grid({"a": numbers}, evidence=torch.tensor(EVIDENCE[:, 1]))
        plots.plot_perturbation(torch.tensor(FRAMES), torch.arange(TIME) < 9)
        plots.plot_robustness_curve({"vat": (torch.tensor([0, 0.1]), torch.tensor([0.9, 0.2]))})
        plots.plot_dataset(torch.tensor([1, 2, 2]), torch.tensor([9, 10, 10]), torch.tensor([0.5, 0.2, 0.1]))


def test_attention_maps_share_one_scale_that_starts_at_zero():
    fig = plots.plot_attention_grid({"a": {"x": [0.1, 0.2]}, "b": {"x": [[0.3, 0.9], [0.2, 0.1]]}})
    assert {image.get_clim() for ax in fig.axes for image in ax.images} == {(0, 0.9)}
    assert "head 2" in texts(fig)


def test_timeline_marks_true_labels_and_states_how_much_attention_moved():
    fig = plots.plot_timeline(FRAMES, EVIDENCE, LABELS, attention=ATTENTION, scores=SCORES)
    moved = np.abs(ATTENTION["clean"] - ATTENTION["attacked"]).sum() / 2
    found = texts(fig)
    assert f"{moved:.0%} moved" in found
    assert "✓ Car" in found and "Game" in found
    assert any(text.startswith("✓ A name that") and len(text) <= 26 for text in found)


@pytest.mark.parametrize("touched", [[2, 3], np.array([2, 3]), np.isin(np.arange(TIME), [2, 3])])
def test_attacked_frames_are_marked_from_indices_or_a_mask(touched):
    fig = plots.plot_timeline(FRAMES, attacked_frames=touched)
    boxes = [patch for patch in fig.axes[0].patches if patch.get_width() == 1]
    assert [box.get_x() + 0.5 for box in boxes] == [2, 3]


def test_runs_are_the_borders_of_what_is_present():
    assert plots._runs([True, True, False, True]) == [(-0.5, 2), (2.5, 1)]
    assert plots._runs([False, False]) == []


@pytest.mark.parametrize("seeds, words", [(1, "one seed"), (3, "3 seeds")])
def test_figures_say_how_many_seeds_they_rest_on(seeds, words):
    figures = plots.plot_learning_curves({"a-art": curve(seeds)}), plots.plot_table_bars(rows(seeds))
    gaps = np.full((seeds, 2), 0.5)
    for fig in (*figures, plots.plot_robustness_curve({"a-art": ([0, 0.1], gaps)})):
        assert any(words in text for text in texts(fig))


def test_table_bars_are_means_over_seeds_and_leave_out_what_is_not_known():
    ax = plots.plot_table_bars(rows(2)).axes[0]
    widths = [[bar.get_width() for bar in group] for group in ax.containers]
    np.testing.assert_allclose(widths, [[0.9, 0.9], [0.55, 0.55], [np.nan, 0.8]])


def test_rows_without_a_measure_are_left_out():
    table = [row("vat", 0), row("standard", 0, evidence_share=None)]
    ax = plots.plot_evidence_share(table).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["vat"]
    _, right = plots.plot_drift(table).axes
    assert sum(len(points.get_offsets()) for points in right.collections) == 1


def test_every_robustness_figure_can_show_the_ceiling():
    table = plots.plot_table_bars(rows(1), ceiling={"clean": 0.98, "certified at ε": 0.7}).axes[0]
    lines = {line.get_label(): line.get_xdata()[0] for line in table.lines if "matched" in line.get_label()}
    assert list(lines.values()) == [0.98, 0.7] and len({line.get_linestyle() for line in table.lines[-2:]}) == 2
    curve = plots.plot_robustness_curve({"vat": ([0, 0.1], [0.9, 0.2])}, ceiling=[(0, 0.98), (0.1, 0.5)]).axes[0]
    (line,) = [line for line in curve.lines if "matched filter" in line.get_label()]
    np.testing.assert_allclose(line.get_xydata(), [(0, 0.98), (0.1, 0.5)])
    without = plots.plot_robustness_curve({"vat": ([0, 0.1], [0.9, 0.2])}).axes[0]
    assert not any("matched" in line.get_label() for line in without.lines)


def test_a_seed_with_fewer_points_counts_only_where_it_has_them():
    fig = plots.plot_robustness_curve({"vat": ([0, 0.1, 0.8], [[0.9, 0.4, 0.1], [0.7, 0.2, np.nan]])}, calibrated=0.1)
    line = fig.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.8, 0.3, 0.1])
    assert any("else seed 0" in text for text in texts(fig))
    assert "0.1\n1×".lstrip("0") in texts(fig)


def test_gap_lost_is_clean_minus_worst_and_the_panels_share_it():
    left, right = plots.plot_drift(rows(2)).axes
    for ax in (left, right):
        points = np.concatenate([points.get_offsets() for points in ax.collections])
        np.testing.assert_allclose(points[:, 1], [0.4, 0.3, 0.4, 0.3])
    assert left.get_ylim() == right.get_ylim() and left.get_ylabel().startswith("GAP lost")
    known = plots.plot_drift([{key: value for key, value in row.items() if key != "clean"} for row in rows(1)])
    assert known.axes[0].get_ylabel() == "worst GAP@20"


def test_quantization_shows_a_third_of_a_level_vanish():
    ax = plots.plot_quantization().axes[0]
    clean, third, level = (line.get_ydata()[-1] for line in ax.lines[-3:])
    assert third == clean and level == pytest.approx(clean + plots.LEVEL)


def test_one_defense_has_both_curves_in_one_panel_and_several_have_two():
    assert len(plots.plot_learning_curves({"a-art": curve()}).axes) == 1
    several = plots.plot_learning_curves({"a-art": curve(), "standard": [{"epoch": 1, "clean": 0.5}]})
    assert [ax.get_title(loc="left") for ax in several.axes] == ["clean", "attacked"]
