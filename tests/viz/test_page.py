"""The page shows what the project's attacks find, and works from the disk: no kernel, no network.

Both are tried on the page in the repository, so that it is in step with models and films.
"""

import base64
import json
import re
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import yaml

from aart_lib import checkpoint, collate, open_data
from aart_lib.attacks import Attack, perturb
from aart_lib.attention import SteadyAttention
from aart_lib.cli.parser import main
from aart_lib.losses import bce
from aart_lib.threats import ThreatModel
from aart_lib.viz import page as module

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOLDER = ROOT / "figures" / "explorer.html", ROOT / "aart_lib" / "viz"


@pytest.fixture(scope="module")
def shown() -> dict:
    text = PAGE.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


# ---------------------------------------------------------------- the numbers

opened_once = lru_cache(open_data)


def behind(film: dict):
    """Where a video of the page comes from: its source, the test video itself, the names of the C labels."""
    source = next(source for source in module.SOURCES if source.about == film["about"])
    splits = opened_once(source.data)
    item = next(item for item in map(splits.test.__getitem__, source.videos) if item.id.startswith(film["id"]))
    known = module.vocabulary(splits.spec, module.BUNDLED).names
    return source, item, [known[label] for label in splits.labels]


def read(film: dict, model: dict, kind: str, eps: int, frame: int) -> dict:
    """One state of the page, unpacked by its description in the docstrings of `attacks` and `States`."""
    frames, labels, sizes = len(film["pictures"]), len(film["names"]), len(module.FACTORS) - 1
    place = {"all": eps, "one": 1 + sizes + frame * sizes + eps - 1, "box": 1 + sizes + frames * sizes + frame}[kind]
    shares = (model["layers"] * model["heads"] + 1) * frames
    rows = np.frombuffer(base64.b64decode(model["states"]), np.uint8).reshape(-1, shares + 2 * labels)
    assert len(rows) == 1 + sizes + frames * sizes + frames
    row = (rows[0 if eps == 0 and kind != "box" else place] / 255) ** 2
    parts = np.split(row, [shares - frames, shares, shares + labels])
    attention = parts[0].reshape(model["layers"], model["heads"], frames)
    return {"attention": attention, "rollout": parts[1], "scores": parts[2], "steady": parts[3]}


def fresh(model, batch, threat: ThreatModel, kind: str, factor: float, frame: int):
    """Attacked frames of one state, by a way of its own: one frame is attacked by a model that is shown no other."""
    if factor == 0 and kind != "box":
        return batch.frames
    if kind == "all":
        return perturb(model, batch, Attack(threat.times(factor), steps=10, start="zero"))

    def seen(frames):
        changed = batch.frames.clone()
        changed[:, frame] = frames[:, frame]
        return changed

    def alone(frames, mask):
        return model(seen(frames), mask).logits

    few = [Attack(threat.times(f).few(), steps=10, start="zero") for f in module.FACTORS[1:]]
    if kind == "one":
        return seen(perturb(alone, batch, few[module.FACTORS.index(factor) - 1]))
    far = [Attack(threat.spliced(), steps=20, start="zero", step_size=size) for size in (0.3, 0.1, 0.03)]
    found = [seen(perturb(alone, batch, attack)) for attack in few + far]
    return max(found, key=lambda frames: float(bce(model(frames, batch.mask).logits, batch.labels)))


@pytest.mark.parametrize("seed", range(6))  # two of each kind
def test_a_state_picked_at_random_equals_a_fresh_computation(shown, seed):
    rng = np.random.default_rng([20, seed])
    film = shown["videos"][rng.integers(len(shown["videos"]))]
    about, kind = film["models"][rng.integers(len(film["models"]))], ("all", "one", "box")[seed % 3]
    eps, frame = int(rng.integers(len(module.FACTORS))), int(rng.integers(len(film["pictures"])))
    source, item, names = behind(film)
    batch = collate([item])
    model, notes = checkpoint.load(source.checkpoints / f"{about['name']}-seed0.safetensors")
    threat, found = ThreatModel(**notes["threat"]), read(film, about, kind, eps, frame)

    with torch.no_grad():
        frames = fresh(model, batch, threat, kind, module.FACTORS[eps], frame)
        output = model(frames, batch.mask, return_attention=True)
        steady = SteadyAttention(model, model(batch.frames, batch.mask, return_attention=True).attention)
        held = steady(fresh(steady, batch, threat, kind, module.FACTORS[eps], frame), batch.mask)
    if kind != "all":
        assert {*(frames != batch.frames).any(2)[0].nonzero()[:, 0].tolist()} <= {frame}
    weights = torch.stack([layer[0, :, 0, 1:] for layer in output.attention]).numpy()
    columns = [names.index(name) for name in film["names"]]
    assert np.abs(found["attention"] - weights).max() < 0.02  # bytes are exact to 0.004
    assert np.abs(found["scores"] - output.logits.sigmoid()[0, columns].numpy()).max() < 0.02
    assert np.abs(found["steady"] - held.logits.sigmoid()[0, columns].numpy()).max() < 0.02


def test_true_labels_come_first_with_the_frames_that_show_them(shown):
    for film in shown["videos"]:
        source, item, names = behind(film)
        true = {names[c]: item.evidence[:, c].nonzero()[:, 0].tolist() for c in item.labels.nonzero()[:, 0].tolist()}
        assert dict(zip(film["names"], film["evidence"], strict=False)) == true
        assert [model["name"] for model in film["models"]] == [*source.defenses]


def test_page_in_the_repository_has_the_present_script_and_style():
    page, script = PAGE.read_text("utf-8"), (FOLDER / "page.js").read_text("utf-8")
    around = re.split(r"\{\{(?:data|picture)\}\}", (FOLDER / "page.html").read_text("utf-8"))
    for part in around:
        assert part.replace("{{script}}", script) in page, "make page writes it anew"
    assert len(around) == 3 and PAGE.stat().st_size < 3e6


def test_command_writes_a_page(tmp_path, monkeypatch, capsys):
    films, _ = module.SOURCES
    monkeypatch.setattr(module, "FACTORS", (0.0, 1.0))
    monkeypatch.setattr(module.page, "__defaults__", ((replace(films, defenses=("standard",), videos=(23,)),),))
    assert main(["page", "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert "1 videos" in capsys.readouterr().out
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "{{" not in text.replace("${{", "") and "<noscript" not in text and len(text) < 5e5


def test_page_without_its_models_is_one_sentence(tmp_path, monkeypatch, capsys):
    films, _ = module.SOURCES
    monkeypatch.setattr(module.page, "__defaults__", ((replace(films, checkpoints=tmp_path),),))
    assert main(["page", "--out", str(tmp_path / "page.html")]) == 2
    assert "standard-seed0.safetensors is not a file" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_workflow_publishes_the_page_where_pages_are_switched_on_and_may_do_nothing_else():
    job = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8"))["jobs"]["publish"]
    assert "has_pages" in job["if"]
    assert job["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    for link in re.findall(r'href="\.\./(\S+)"', PAGE.read_text("utf-8")):
        assert (ROOT / link).is_file(), link


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def tab(browser):
    """A new tab; what it asks of anybody but the disk, and every error of its script, is an error here."""
    tab, asked, errors = browser.new_page(viewport={"width": 1280, "height": 1000}), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    yield tab
    tab.close()
    assert [url for url in asked if not url.startswith(("data:", PAGE.as_uri()))] == []
    assert errors == []


def opened(tab, **state) -> None:
    tab.goto("about:blank")
    tab.goto(PAGE.as_uri() + "#" * bool(state) + urlencode(state))
    tab.wait_for_selector("#said:not(:empty)")


def percent(share: float) -> str:
    return f"{int(100 * share + 0.5)}%"


def expected(film: dict, model: dict, kind: str, eps: int, frame: int) -> list[str]:
    """The texts beside the bars of the labels, clean and attacked in turn."""
    pair = (read(film, model, kind, e, frame)["scores"] for e in (0, eps))
    return [percent(score) for clean, attacked in zip(*pair, strict=True) for score in (clean, attacked)]


def scores(tab) -> list[str]:
    return tab.locator("#labels .meter span").all_inner_texts()


def chosen(tab) -> dict:
    return dict(pair.split("=") for pair in tab.url.partition("#")[2].split("&"))


def test_first_picture_comes_within_a_second(tab):
    seconds = []
    for _ in range(4):  # the quickest counts: the first starts the browser, and others may be at work on the machine
        started = time.perf_counter()
        opened(tab)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1
    assert tab.locator("#static").is_hidden() and tab.locator("#strip button").count() > 5


def test_epsilon_frames_and_models_show_their_own_numbers(tab, shown):
    film, one = shown["videos"][0], module.FACTORS.index(1.0)
    baseline, other = film["models"][0], next(m for m in film["models"] if m["name"] == "a-art")
    opened(tab)
    assert scores(tab) == expected(film, baseline, "one", one, shown["frame"])

    tab.get_by_text("all frames", exact=True).click()
    assert scores(tab) == expected(film, baseline, "all", one, 0)

    tab.locator("#eps").focus()
    tab.keyboard.press("ArrowRight")  # by keyboard, as a person without a mouse would
    assert chosen(tab)["eps"] == "1.25" and "1.25 × calibrated" in tab.inner_text("#size")
    assert scores(tab) == expected(film, baseline, "all", one + 1, 0)

    tab.locator("#strip button").nth(3).click()
    assert chosen(tab)["frame"] == "3"
    assert tab.locator("#strip button[aria-pressed=true]").all_inner_texts()[0].split() == ["3"]
    assert scores(tab) == expected(film, baseline, "one", one + 1, 3)

    tab.get_by_text("A-ART", exact=True).click()
    assert chosen(tab) == {"film": film["id"], "model": "a-art", "eps": "1.25", "frame": "3"}
    assert scores(tab) == expected(film, other, "one", one + 1, 3)
    weights = [percent(read(film, other, "one", e, 3)["attention"][-1].mean(0)[3]) for e in (0, one + 1)]
    assert all(weight in tab.inner_text("#said") for weight in weights)


def test_a_link_leads_to_its_state_and_a_wrong_one_to_what_it_can(tab, shown):
    film = shown["videos"][-1]
    model = next(m for m in film["models"] if m["name"] == "trades")
    state = {"film": film["id"], "model": "trades", "eps": 2, "frame": 7, "layer": 1, "head": 2}
    opened(tab, **state)
    assert chosen(tab) == {key: str(value) for key, value in state.items()}
    assert scores(tab) == expected(film, model, "one", len(module.FACTORS) - 1, 7)
    weights = read(film, model, "one", len(module.FACTORS) - 1, 7)["attention"][0, 1]
    label = tab.locator("#strip button").nth(7).get_attribute("aria-label")
    assert f"{percent(weights[7])} attacked" in label

    # a link followed within the page
    tab.goto(PAGE.as_uri() + "#" + urlencode(state | {"model": "a-art", "steady": 1}))
    tab.wait_for_selector("#steady:checked")
    assert "attention is held steady" in tab.inner_text("#said")
    opened(tab, film="none", model="x", eps="-3", frame=99, layer="y")
    assert chosen(tab) == {"film": shown["videos"][0]["id"], "model": "standard", "eps": "1"}


def test_every_control_answers_within_a_tenth_of_a_second(tab, shown):
    opened(tab, film=shown["videos"][-1]["id"])
    slowest = tab.evaluate(
        """() => {
        const changed = [...document.querySelectorAll("#model input, #attack input, #steady")];
        const acts = changed.map((input) => () => input.click());
        acts.push(...[...document.querySelectorAll("#strip button")].map((button) => () => button.click()));
        for (const menu of document.querySelectorAll("select")) {
          for (const option of menu.options) {
            acts.push(() => { menu.value = option.value; menu.dispatchEvent(new Event("change")); });
          }
        }
        const quickest = acts.map(() => Infinity); // of three rounds: others may be at work on the machine
        for (let round = 0; round < 3; round++) {
          acts.forEach((act, index) => {
            const start = performance.now();
            act();
            document.body.getBoundingClientRect(); // lays it out
            quickest[index] = Math.min(quickest[index], performance.now() - start);
          });
        }
        return Math.max(...quickest);
      }"""
    )
    assert slowest < 100


@pytest.mark.parametrize("width, scheme", [(390, "dark"), (1400, "light")])
def test_page_fits_its_window(tab, width, scheme):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    opened(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert min(box["width"] for box in (b.bounding_box() for b in tab.locator("#strip button").all())) >= 35
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_every_control_has_a_name_and_colors_are_not_alone(tab):
    opened(tab)
    for control in tab.locator("button, input, select").all():
        name = control.evaluate(
            "c => c.ariaLabel || c.innerText || [...c.labels].map((label) => label.innerText).join('')"
        )
        assert name.strip(), control.evaluate("c => c.outerHTML")
    assert tab.locator(".bars .attacked").first.evaluate("e => getComputedStyle(e).borderTopStyle") == "dashed"
    assert "attacked" in tab.locator("#strip button[aria-pressed=true] .number").evaluate(
        "e => getComputedStyle(e, '::after').content"
    )


def test_without_a_script_or_with_broken_data_there_is_a_sentence_and_a_picture(browser, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(PAGE.read_text("utf-8").replace('"videos"', '"vid', 1), encoding="utf-8")
    for path, script, sentence in ((PAGE, False, "needs JavaScript"), (broken, True, "cannot be read")):
        context = browser.new_context(java_script_enabled=script)
        tab = context.new_page()
        tab.goto(path.as_uri())
        assert sentence in tab.inner_text("#trouble") and tab.locator("#static img").is_visible()
        assert tab.locator("#explorer").is_hidden()
        context.close()
