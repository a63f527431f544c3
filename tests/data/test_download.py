"""Downloads from a server on this machine with the official paths, well-behaved and not."""

import base64
import errno
import hashlib
import io
import json
import re
import shutil
import socket
import tarfile
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from aart_lib.cli.parser import main
from aart_lib.data import download as module
from aart_lib.data.download import DownloadError, download

PLAN = "/2/download_plans/frame_train.json"
NAMES = ["trainaB.tfrecord", "trainZz.tfrecord", "train0a.tfrecord", "trainqq.tfrecord"]
Request = namedtuple("Request", "path range")


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; cuts a body after ``server.cuts[path].pop(0)`` bytes, says 503 ``server.busy`` times."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.log.append(Request(self.path, wanted))
        if server.busy.get(self.path, 0):
            server.busy[self.path] -= 1
            return self.send_error(503)
        body = server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in server.headers.get(self.path, {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cuts = server.cuts.get(self.path, [])
        self.wfile.write(body[start : start + cuts.pop(0)] if cuts else body[start:])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A YouTube-8M server with four shards of a few hundred kilobytes; pauses are short."""
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.log, server.cuts, server.busy, server.headers, server.ranges = [], {}, {}, {}, True
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        generator = np.random.default_rng(0)
        server.shards = {name: generator.bytes(200_000 + 50_000 * i) for i, name in enumerate(NAMES)}
        server.files = {f"/2/frame/train/{name}": body for name, body in server.shards.items()}
        server.plan = {name: hashlib.md5(body).hexdigest() for name, body in server.shards.items()}
        server.files[PLAN] = json.dumps({"files": server.plan}).encode()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def fetch(server, out, **options):
    return download("yt8m-frame", base_url=server.url, out=out, **options)


def contents(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ranges(server, name: str) -> list:
    return [request.range for request in server.log if request.path == f"/2/frame/train/{name}"]


# ---------------------------------------------------------------- what arrives


def test_all_shards_of_a_split_arrive_whole(server, tmp_path):
    files = fetch(server, tmp_path / "new" / "folder")
    assert {file.path.name: file.path.read_bytes() for file in files} == server.shards
    assert contents(tmp_path / "new" / "folder") == server.shards


def test_a_bare_map_is_a_plan_too(server, tmp_path):
    server.files[PLAN] = json.dumps(server.plan).encode()
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards


def test_video_level_validation_has_its_own_paths(server, tmp_path):
    server.files = {
        "/3/download_plans/video_validate.json": json.dumps({"files": {"a.tfrecord": hashlib.md5(b"v").hexdigest()}}),
        "/3/video/validate/a.tfrecord": b"v",
    }
    server.files = {path: body.encode() if isinstance(body, str) else body for path, body in server.files.items()}
    download("yt8m-video", split="validate", base_url=server.url + "/", out=tmp_path, version=3)
    assert contents(tmp_path) == {"a.tfrecord": b"v"}


def test_parts_share_out_all_shards_by_the_md5_of_their_names(server, tmp_path):
    for part in (1, 2):
        names = {name for name in NAMES if int(hashlib.md5(name.encode()).hexdigest(), 16) % 2 == part - 1}
        assert {file.path.name for file in fetch(server, tmp_path / str(part), shards=f"{part}/2")} == names
        assert 0 < len(names) < len(NAMES)


def test_vocabulary_arrives_under_its_own_name(server, tmp_path):
    server.files["/youtube8m/csv/2/vocabulary.csv"] = b"Index,Name\n0,Game\n"
    (found,) = download("vocabulary", base_url=server.url, out=tmp_path)
    assert found.path == tmp_path / "vocabulary.csv" and found.md5 is None
    assert contents(tmp_path) == {"vocabulary.csv": b"Index,Name\n0,Game\n"}


def test_only_what_was_compared_with_a_checksum_is_called_verified(server, audioset, tmp_path, capsys):
    server.files["/youtube8m/csv/2/vocabulary.csv"] = b"Index,Name\n0,Game\n"
    words = {"yt8m-frame": "4 verified\n", "vocabulary": "0 verified, 1 came without", "audioset": "2 verified\n"}
    for dataset, said in words.items():
        out = str(tmp_path / dataset)
        assert main(["download", dataset, "--base-url", server.url, "--out", out]) == 0
        assert said in capsys.readouterr().out


def test_shards_are_numbered_where_the_file_system_ignores_case(server, tmp_path, monkeypatch):
    assert not module._ignores_case(tmp_path) or (tmp_path / "A").exists() == (tmp_path / "a").exists()
    monkeypatch.setattr(module, "_ignores_case", lambda folder: True)
    fetch(server, tmp_path)
    assert contents(tmp_path)["train0027.tfrecord"] == server.shards["trainaB.tfrecord"]
    assert len({name.lower() for name in contents(tmp_path)}) == len(NAMES)
    assert module._numbered("train99.tfrecord") == "train3843.tfrecord"
    assert module._numbered("notes_.txt") == "notes_.txt"


# ---------------------------------------------------------------- cut, stopped, started again


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    server.cuts["/2/frame/train/trainaB.tfrecord"] = [70_001, 50_000]
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards
    assert ranges(server, "trainaB.tfrecord") == [None, "bytes=70001-", "bytes=120001-"]


def test_a_second_run_fetches_only_what_is_missing(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / "trainqq.tfrecord").rename(tmp_path / "trainqq.tfrecord.part")
    (tmp_path / "trainZz.tfrecord").unlink()
    (tmp_path / "trainZz.tfrecord.part").write_bytes(server.shards["trainZz.tfrecord"][:123_456])
    server.log.clear()
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards
    assert ranges(server, "trainaB.tfrecord") == ranges(server, "train0a.tfrecord") == []
    assert ranges(server, "trainZz.tfrecord") == ["bytes=123456-"]
    assert ranges(server, "trainqq.tfrecord") == ["bytes=350000-"]  # complete, only its name was missing


@pytest.mark.parametrize("size", [100_000, 900_000], ids=["shorter", "longer"])
def test_a_beginning_of_another_file_is_thrown_away(server, tmp_path, size):
    (tmp_path / "trainaB.tfrecord.part").write_bytes(b"x" * size)
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.ranges = False
    (tmp_path / "trainaB.tfrecord.part").write_bytes(server.shards["trainaB.tfrecord"][:1000])
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards
    assert ranges(server, "trainaB.tfrecord") == ["bytes=1000-"]


def test_a_changed_file_under_a_final_name_is_replaced(server, tmp_path):
    (tmp_path / "trainaB.tfrecord").write_bytes(b"damaged")
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.busy = {PLAN: 2, "/2/frame/train/trainaB.tfrecord": 2}
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards


def test_an_interrupt_stops_all_threads_and_the_next_run_completes(server, tmp_path, monkeypatch):
    def interrupted(jobs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "as_completed", interrupted)
        fetch(server, tmp_path)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    whole = {name: content for name, content in contents(tmp_path).items() if name in NAMES}
    assert whole.items() <= server.shards.items()  # nothing half-made under a final name
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards


# ---------------------------------------------------------------- one clear sentence


def test_a_shard_with_a_wrong_md5_does_not_appear(server, tmp_path):
    server.files["/2/frame/train/trainaB.tfrecord"] = b"x" * 100_000
    with pytest.raises(DownloadError, match=r"1 of 4 files .*trainaB\.tfrecord: the md5"):
        fetch(server, tmp_path)
    assert contents(tmp_path) == {name: body for name, body in server.shards.items() if name != "trainaB.tfrecord"}


def test_a_missing_shard_is_named_after_the_others_arrived(server, tmp_path):
    del server.files["/2/frame/train/trainaB.tfrecord"]
    with pytest.raises(DownloadError, match=r"1 of 4 files .*trainaB\.tfrecord: the server answers 404"):
        fetch(server, tmp_path)
    assert set(contents(tmp_path)) == set(NAMES) - {"trainaB.tfrecord"}


def test_a_missing_plan_is_named(server, tmp_path):
    with pytest.raises(DownloadError, match=r"video_test\.json: the server answers 404"):
        download("yt8m-video", split="test", base_url=server.url, out=tmp_path)


def test_a_full_disk_stops_before_anything_is_written(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(DownloadError, match=r"disk of .* needs \d\.\d MB more .* 0\.0 MB free"):
        fetch(server, tmp_path)
    assert contents(tmp_path) == {}


def test_a_disk_that_fills_up_meanwhile_is_named(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(DownloadError, match=r"cannot write to .*No space left"):
        fetch(server, tmp_path)


def test_a_server_out_of_reach_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match=rf"{url}/2/.* is out of reach .*check the network"):
            download("yt8m-frame", base_url=url, out=tmp_path)


def test_a_server_that_stays_busy_is_out_of_reach(server, tmp_path):
    server.busy = {PLAN: 1000}
    with pytest.raises(DownloadError, match="out of reach"):
        fetch(server, tmp_path)
    assert len(server.log) == module.ATTEMPTS


def test_a_connection_that_never_brings_a_byte_is_given_up(server, tmp_path):
    server.cuts["/2/frame/train/trainaB.tfrecord"] = [0] * 100
    with pytest.raises(DownloadError, match="cut again and again"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "a\\b", "C:x", ".hidden", "..", "", "x\n", "x.part", "-/../x", "ü"]
)
def test_names_from_a_server_never_leave_the_output_folder(server, tmp_path, name):
    server.files[PLAN] = json.dumps({"files": server.plan | {name: "0" * 32}}).encode()
    with pytest.raises(DownloadError, match="is not a plain file name"):
        fetch(server, tmp_path / "out")
    assert contents(tmp_path / "out") == {} and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("plan", [b"<html>", b"[]", b'{"files": 3}', b'{"files": {"a": 3}}', b"\xff\xfe\x00"])
def test_a_plan_that_is_none_is_named(server, tmp_path, plan):
    server.files[PLAN] = plan
    with pytest.raises(DownloadError, match=r"frame_train\.json is not a download plan"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'; known are yt8m-frame"),
        ({"split": "eval"}, "unknown split 'eval'; known are train, validate, test"),
        ({"mirror": "mars"}, "unknown mirror"),
        ({"shards": "0/4"}, "1 <= X <= Y"),
        ({"shards": "5/4"}, "1 <= X <= Y"),
        ({"shards": "half"}, "1 <= X <= Y"),
        ({"shards": "1/1000000"}, "none of the 4 shards"),
        ({"base_url": "ftp://example.org"}, "base_url must begin with http"),
        ({"version": 1}, "unknown version 1; known are 2, 3"),
        ({"mirror": "eu"}, "--mirror changes nothing .* comes from --base-url; leave it out"),
        ({"dataset": "audioset", "split": "test"}, "--split changes nothing for audioset, which is one file"),
        ({"dataset": "audioset", "version": 3}, "--version changes nothing for audioset"),
        ({"dataset": "vocabulary", "shards": "1/1000"}, "--shards changes nothing for vocabulary"),
        ({"dataset": "vocabulary", "mirror": "asia"}, "--mirror changes nothing for vocabulary"),
    ],
)
def test_wrong_arguments_are_named(server, tmp_path, options, sentence):
    with pytest.raises(DownloadError, match=sentence):
        download(**{"dataset": "yt8m-frame", "base_url": server.url, "out": tmp_path} | options)


def test_an_output_that_is_a_file_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot write to .*file"):
        fetch(server, tmp_path / "file")


# ---------------------------------------------------------------- AudioSet


def audioset_archive(members: dict) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


@pytest.fixture
def audioset(server):
    """The same server with an AudioSet archive, whose md5 it tells as Google Cloud Storage does."""
    path = "/us_audioset/youtube_corpus/v1/features/features.tar.gz"
    top = "audioset_v1_embeddings"
    members = {"bal_train/aB": b"1" * 9000, "eval/__": b"2", "bal_train/Ab": b"3", "unbal_train/00": b"4", "aB": b"5"}
    server.files[path] = audioset_archive({f"{top}/{name}.tfrecord": body for name, body in members.items()})
    md5 = base64.b64encode(hashlib.md5(server.files[path]).digest()).decode()
    server.headers[path] = {"x-goog-hash": f"crc32c=AAAAAA==, md5={md5}"}
    server.archive = path
    return server


def test_audioset_arrives_as_a_train_and_an_eval_shard(audioset, tmp_path):
    audioset.cuts[audioset.archive] = [40]
    paths = [file.path for file in download("audioset", base_url=audioset.url, out=tmp_path)]
    assert paths == [tmp_path / "audioset_bal_train.tfrecord", tmp_path / "audioset_eval.tfrecord"]
    assert [path.read_bytes() for path in paths] == [b"1" * 9000 + b"3", b"2"]
    assert set(contents(tmp_path)) == {"audioset_bal_train.tfrecord", "audioset_eval.tfrecord", "features.tar.gz"}


def test_an_audioset_archive_with_a_wrong_md5_does_not_appear(audioset, tmp_path):
    audioset.files[audioset.archive] = audioset.files[audioset.archive] + b"x"
    with pytest.raises(DownloadError, match="the md5 of what arrived"):
        download("audioset", base_url=audioset.url, out=tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("size", [100, -3])
def test_a_damaged_audioset_archive_is_named_and_leaves_no_shard(audioset, tmp_path, size):
    (tmp_path / "features.tar.gz").write_bytes(audioset.files[audioset.archive][:size])
    with pytest.raises(DownloadError, match=r"features\.tar\.gz is damaged"):
        download("audioset", base_url=audioset.url, out=tmp_path)
    assert set(contents(tmp_path)) == {"features.tar.gz"}


def test_an_archive_of_something_else_is_named(audioset, tmp_path):
    (tmp_path / "features.tar.gz").write_bytes(audioset_archive({"top/other/00.tfrecord": b"x"}))
    with pytest.raises(DownloadError, match="no bal_train and eval folders"):
        download("audioset", base_url=audioset.url, out=tmp_path)
    assert set(contents(tmp_path)) == {"features.tar.gz"}
