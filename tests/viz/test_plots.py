"""plots.py: what the figures show, and that they are drawn for every shape of input and stored whole."""

import warnings
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from aart_lib.losses import DEFENSES

matplotlib.use("Agg")
plots = pytest.importorskip("aart_lib.viz.plots")
plt = plots.plt

TIME, CLASSES = 12, 4
RNG = np.random.default_rng(0)
FRAMES = RNG.uniform(-2, 2, (TIME, 20))
EVIDENCE = np.zeros((TIME, CLASSES), bool)
EVIDENCE[2:5, 1] = EVIDENCE[7:, 3] = EVIDENCE[0, 3] = True
PICTURES = [np.zeros((2, 2, 3), np.uint8)] * TIME
LABELS = ["Game", "Car", "Food", "A name that is far too long for the space it has"]
ATTENTION = {"clean": np.full(TIME, 1 / TIME), "attacked": RNG.dirichlet(np.ones(TIME))}
SCORES = {"clean": [0.1, 0.9, 0.2, 0.8], "attacked": [0.7, 0.2, 0.2, 0.1]}


def row(defense, seed, **more):
    shares = {"clean": 0.6, "attacked": 0.4, "chance": 0.2}
    measured = {"attention_drift": 0.1, "attention_entropy": 2.0, "evidence_share": shares}
    gaps = {"clean": {"gap": 0.9}, "worst": {"gap": 0.5 + 0.1 * seed}}
    return {"defense": defense, "seed": seed} | gaps | measured | more


def rows(seeds):
    more = {"standard": {}, "a-art": {"steady_attention": {"gap": 0.8}}}
    return [row(name, seed, **more[name]) for name in more for seed in range(seeds)]


def curve(seeds=1):
    points = [{"epoch": e, "clean": 0.5 + e / 20, "attacked": e / 20} for e in range(1, 6)]
    return [point | {"seed": seed} for point in points for seed in range(seeds)]


SINGLE = {
    "robustness": partial(plots.plot_robustness_curve, {"trades": ([0, 0.1], [0.9, 0.2])}, calibrated=0.05),
    "table": partial(plots.plot_table_bars, rows(1)),
    "share": partial(plots.plot_evidence_share, rows(2)),
    "quantization": plots.plot_quantization,
    "curves": partial(plots.plot_curves, {"synthetic": {1: 0.4}, "genuine": {"1": 0.4}}, xscale="log"),
}
timeline = partial(plots.plot_timeline, FRAMES, EVIDENCE, LABELS)
WHOLE = {
    "video": partial(timeline, attacked_frames=[3]),
    "attacked": partial(timeline, attention=ATTENTION, scores=SCORES),
    "scores": partial(plots.plot_timeline, FRAMES, None, LABELS, scores=SCORES, labels=[0, 1, 0, 1]),
    "both": partial(timeline, pictures=PICTURES, both=True),
    "grid": partial(plots.plot_attention_grid, {"a": ATTENTION, "b": ATTENTION}, evidence=EVIDENCE[:, 1]),
    "heads": partial(plots.plot_attention_grid, {"a": {"x": FRAMES[:, :3].T ** 2}}),
    "learning": partial(plots.plot_learning_curves, {"vat": curve(), "unheard-of": curve()}),
    "hijacks": partial(plots.plot_hijacks, {"vat": ([0.1, 0.2], [0.5, 0.1])}),
    "drift": partial(plots.plot_drift, rows(1), second="attention_entropy"),
    "batch": partial(plots.plot_batch, FRAMES.T, FRAMES.T > 0),
    "dataset": partial(plots.plot_dataset, [1, 2, 2], [9, 10, 10], [0.5, 0.2, 0.1]),
}


def texts(fig):
    return [text.get_text() for text in fig.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("name", SINGLE | WHOLE)
def test_every_figure_is_titled_handed_back_and_closed(name):
    fig = (SINGLE | WHOLE)[name](title="The finding")
    assert isinstance(fig, Figure) and "The finding" in texts(fig)
    assert plt.get_fignums() == []
    if name in SINGLE:
        own, ax = plt.subplots()
        assert SINGLE[name](ax=ax) is own
        plt.close(own)


OTHERS = {"text.usetex": True, "savefig.dpi": 30, "savefig.bbox": "tight", "savefig.format": "pdf", "font.size": 30}
OTHERS |= {"axes.grid": True, "lines.linewidth": 9, "figure.dpi": 20, "savefig.facecolor": "red", "xtick.top": True}


@pytest.mark.parametrize("name", ["heads", "drift"])
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


def test_a_picture_that_cannot_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    fig = plots.plot_quantization()
    monkeypatch.setattr(fig, "savefig", lambda file, **options: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        plots.save(fig, tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_every_defense_has_a_color_of_its_own_and_none_looks_clean_or_attacked():
    names = [*DEFENSES, "uniform-attention", "mine"]
    colors = [plots.CLEAN, plots.ATTACKED, *(plots.defense_style(name)["color"] for name in names)]
    assert len({*map(matplotlib.colors.to_hex, colors)}) == len(colors)
    assert plots.defense_style("mine") == plots.defense_style("mine")


def test_tensors_are_drawn_as_arrays_are_without_a_warning():
    numbers = {key: torch.as_tensor(value) for key, value in ATTENTION.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_timeline(*map(torch.tensor, (FRAMES, EVIDENCE)), LABELS, attention=numbers)
        plots.plot_attention_grid({"a": numbers}, evidence=torch.tensor(EVIDENCE[:, 1]))
        plots.plot_robustness_curve({"vat": (torch.tensor([0, 0.1]), torch.tensor([0.9, 0.2]))})


def test_attention_maps_share_one_scale_that_starts_at_zero():
    fig = plots.plot_attention_grid({"a": {"x": [0.1, 0.2]}, "b": {"x": [[0.3, 0.9], [0.2, 0.1]]}})
    assert {image.get_clim() for ax in fig.axes for image in ax.images} == {(0, 0.9)}
    assert "head 2" in texts(fig)


@pytest.mark.parametrize("seeds, words", [(1, "one seed"), (3, "3 seeds")])
def test_figures_say_how_many_seeds_they_rest_on(seeds, words):
    figures = plots.plot_learning_curves({"a-art": curve(seeds)}), plots.plot_table_bars(rows(seeds))
    gaps = np.full((seeds, 2), 0.5)
    for fig in (*figures, plots.plot_robustness_curve({"a-art": ([0, 0.1], gaps)})):
        assert any(words in text for text in texts(fig))


def test_bars_and_points_are_the_rows_numbers_and_leave_out_what_is_not_known():
    ax = plots.plot_table_bars(rows(2)).axes[0]
    widths = [[bar.get_width() for bar in group] for group in ax.containers]
    np.testing.assert_allclose(widths, [[0.9, 0.9], [0.55, 0.55], [np.nan, 0.8]])
    ax = plots.plot_evidence_share([row("vat", 0), row("standard", 0, evidence_share=None)]).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["vat"]
    for ax in plots.plot_drift(rows(2)).axes:  # GAP lost: clean less worst
        points = np.concatenate([points.get_offsets() for points in ax.collections])
        np.testing.assert_allclose(points[:, 1], [0.4, 0.3, 0.4, 0.3])
