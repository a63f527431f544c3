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
FIRST, FOLDER = NAMES[0], "/2/frame/train/"
ARCHIVE = "/us_audioset/youtube_corpus/v1/features/features.tar.gz"
Usage = namedtuple("Usage", "total used free")


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; cuts a body after ``server.cuts[path].pop(0)`` bytes, says 503 ``server.busy`` times."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.log.append((self.path.removeprefix(FOLDER), wanted))
        if server.busy.get(self.path, 0):
            server.busy[self.path] -= 1
            return self.send_error(503)
        body = server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        code = 200 if not start else 206 if start < len(body) else 416
        told = {206: f"bytes {start}-{len(body) - 1}/{len(body)}", 416: f"bytes */{len(body)}"}
        headers = server.headers.get(self.path, {}) | ({"Content-Range": told[code]} if code in told else {})
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(max(0, len(body) - start))}).items():
            self.send_header(name, value)
        self.end_headers()
        cuts = server.cuts.get(self.path)
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
        server.files = {FOLDER + name: body for name, body in server.shards.items()}
        server.files["/youtube8m/csv/2/vocabulary.csv"] = b"Index,Name\n0,Game\n"
        server.plan = {name: hashlib.md5(body).hexdigest() for name, body in server.shards.items()}
        server.files[PLAN] = json.dumps({"files": server.plan}).encode()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def fetch(server, out, **options):
    return download("yt8m-frame", base_url=server.url, out=out, **options)


def contents(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- what arrives


def test_all_shards_of_a_split_arrive_whole(server, tmp_path):
    out = tmp_path / "new" / "folder"
    assert {file.path.name for file in fetch(server, out)} == set(NAMES) and contents(out) == server.shards
    server.files[PLAN] = json.dumps(server.plan).encode()  # a bare map is a plan too
    fetch(server, tmp_path / "again")
    assert contents(tmp_path / "again") == server.shards


def test_level_split_and_version_are_in_the_path(server, tmp_path):
    plan = json.dumps({"files": {"a.tfrecord": hashlib.md5(b"v").hexdigest()}}).encode()
    server.files = {"/3/download_plans/video_validate.json": plan, "/3/video/validate/a.tfrecord": b"v"}
    download("yt8m-video", split="validate", base_url=server.url + "/", out=tmp_path, version=3)
    assert contents(tmp_path) == {"a.tfrecord": b"v"}


def test_parts_share_out_all_shards_by_the_md5_of_their_names(server, tmp_path):
    for part in (1, 2):
        names = {name for name in NAMES if int(hashlib.md5(name.encode()).hexdigest(), 16) % 2 == part - 1}
        assert {file.path.name for file in fetch(server, tmp_path / str(part), shards=f"{part}/2")} == names
        assert 0 < len(names) < len(NAMES)


def test_only_what_was_compared_with_a_checksum_is_called_verified(server, audioset, tmp_path, capsys):
    words = {"yt8m-frame": "4 verified\n", "vocabulary": "0 verified, 1 came without", "audioset": "2 verified\n"}
    for dataset, said in words.items():
        out = str(tmp_path / dataset)
        assert main(["download", dataset, "--base-url", server.url, "--out", out]) == 0
        assert said in capsys.readouterr().out
    assert contents(tmp_path / "vocabulary") == {"vocabulary.csv": b"Index,Name\n0,Game\n"}


def test_shards_are_numbered_where_the_file_system_ignores_case(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ignores_case", lambda folder: True)
    fetch(server, tmp_path)
    assert contents(tmp_path)["train0027.tfrecord"] == server.shards[FIRST]
    assert len({name.lower() for name in contents(tmp_path)}) == len(NAMES)


# ---------------------------------------------------------------- cut, stopped, started again


def test_a_cut_connection_goes_on_where_it_stopped_and_a_busy_server_is_asked_again(server, tmp_path):
    server.cuts[FOLDER + FIRST] = [70_001, 50_000]
    server.busy = {PLAN: 2, FOLDER + NAMES[1]: 2}
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards
    assert [asked for name, asked in server.log if name == FIRST] == [None, "bytes=70001-", "bytes=120001-"]


def test_a_second_run_fetches_only_what_is_missing(server, tmp_path):
    done, damaged, begun, unnamed = NAMES
    fetch(server, tmp_path)
    (tmp_path / damaged).write_bytes(b"damaged")
    (tmp_path / begun).unlink()
    (tmp_path / f"{begun}.part").write_bytes(server.shards[begun][:123_456])
    (tmp_path / unnamed).rename(tmp_path / f"{unnamed}.part")
    server.log.clear()
    fetch(server, tmp_path)
    assert contents(tmp_path) == server.shards
    asked = dict(server.log)
    assert done not in asked and asked[damaged] is None
    assert asked[begun] == "bytes=123456-" and asked[unnamed] == "bytes=350000-"


@pytest.mark.parametrize(("size", "ranges"), [(100_000, True), (900_000, True), (100_000, False)])
def test_a_beginning_that_cannot_be_gone_on_with_is_thrown_away(server, tmp_path, size, ranges):
    server.ranges = ranges
    (tmp_path / f"{FIRST}.part").write_bytes(b"x" * size)
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


@pytest.mark.parametrize(("body", "words"), [(b"x" * 100_000, "the md5"), (None, "the server answers 404")])
def test_a_shard_that_cannot_be_had_is_named_after_the_others_arrived(server, tmp_path, body, words):
    server.files[FOLDER + FIRST] = body
    with pytest.raises(DownloadError, match=rf"1 of 4 files .*trainaB\.tfrecord: {words}"):
        fetch(server, tmp_path)
    assert contents(tmp_path) == {name: body for name, body in server.shards.items() if name != FIRST}


PLANS = [b"<html>", b"[]", b'{"files": 3}', b'{"files": {"a": 3}}', b"\xff\xfe\x00", None]
NO_FILES = ["../x", "/etc/x", "a/b", "a\\b", "C:x", ".hidden", "..", "", "x\n", "x.part", "ü"]


def test_a_plan_that_is_none_is_named_and_names_from_a_server_never_leave_the_output_folder(server, tmp_path):
    names = [json.dumps({"files": server.plan | {name: "0" * 32}}).encode() for name in NO_FILES]
    for plan in PLANS + names:
        server.files[PLAN] = plan
        told = "the server answers 404|is not a download plan|is not a plain file name with an md5"
        with pytest.raises(DownloadError, match=rf"frame_train\.json:? .*({told})"):
            fetch(server, tmp_path / "out")
        assert contents(tmp_path / "out") == {} and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot write to .*file"):
        fetch(server, tmp_path / "file")
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match=r"disk .* needs \d\.\d MB .* 0\.0 MB free"):
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 1000))
        fetch(server, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    monkeypatch.setattr(module, "_receive", full)  # a disk that fills up meanwhile
    with pytest.raises(DownloadError, match=r"cannot write to .*No space left"):
        fetch(server, tmp_path / "out")


def test_a_server_out_of_reach_always_busy_or_cutting_is_named(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match=rf"{url}/2/.* is out of reach .*check the network"):
            download("yt8m-frame", base_url=url, out=tmp_path)
    server.busy = {PLAN: 1000}
    with pytest.raises(DownloadError, match="out of reach"):
        fetch(server, tmp_path)
    assert len(server.log) == module.ATTEMPTS
    server.busy, server.cuts = {}, {FOLDER + FIRST: [0] * 100}
    with pytest.raises(DownloadError, match="cut again and again"):
        fetch(server, tmp_path)


WRONG = [
    ({"dataset": "imagenet"}, "unknown dataset 'imagenet'; known are yt8m-frame"),
    ({"split": "eval"}, "unknown split 'eval'; known are train, validate, test"),
    ({"mirror": "mars"}, "unknown mirror"),
    ({"shards": "0/4"}, "1 <= X <= Y"),
    ({"shards": "half"}, "1 <= X <= Y"),
    ({"shards": "1/1000000"}, "none of the 4 shards"),
    ({"base_url": "ftp://example.org"}, "base_url must begin with http"),
    ({"version": 1}, "unknown version 1; known are 2, 3"),
    ({"mirror": "eu"}, "--mirror changes nothing .* comes from --base-url; leave it out"),
    ({"dataset": "audioset", "split": "test"}, "--split changes nothing for audioset, which is one file"),
    ({"dataset": "vocabulary", "shards": "1/1000"}, "--shards changes nothing for vocabulary"),
]


def test_wrong_arguments_are_named(server, tmp_path):
    for options, sentence in WRONG:
        with pytest.raises(DownloadError, match=sentence):
            download(**{"dataset": "yt8m-frame", "base_url": server.url, "out": tmp_path} | options)


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
    members = {"bal_train/aB": b"1" * 9000, "eval/__": b"2", "bal_train/Ab": b"3", "unbal_train/00": b"4", "aB": b"5"}
    made = audioset_archive({f"audioset_v1_embeddings/{name}.tfrecord": body for name, body in members.items()})
    md5 = base64.b64encode(hashlib.md5(made).digest()).decode()
    server.files[ARCHIVE], server.headers[ARCHIVE] = made, {"x-goog-hash": f"crc32c=AAAAAA==, md5={md5}"}
    return server


def test_audioset_arrives_as_a_train_and_an_eval_shard(audioset, tmp_path):
    audioset.cuts[ARCHIVE] = [40]
    paths = [file.path for file in download("audioset", base_url=audioset.url, out=tmp_path)]
    assert paths == [tmp_path / "audioset_bal_train.tfrecord", tmp_path / "audioset_eval.tfrecord"]
    assert [path.read_bytes() for path in paths] == [b"1" * 9000 + b"3", b"2"]
    assert set(contents(tmp_path)) == {"audioset_bal_train.tfrecord", "audioset_eval.tfrecord", "features.tar.gz"}


def test_an_audioset_archive_with_a_wrong_md5_does_not_appear(audioset, tmp_path):
    audioset.files[ARCHIVE] += b"x"
    with pytest.raises(DownloadError, match="the md5 of what arrived"):
        download("audioset", base_url=audioset.url, out=tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kept", [100, -3, None], ids=["cut early", "cut late", "of something else"])
def test_an_archive_that_is_damaged_or_of_something_else_leaves_no_shard(audioset, tmp_path, kept):
    body = audioset.files[ARCHIVE][:kept] if kept else audioset_archive({"top/other/00.tfrecord": b"x"})
    (tmp_path / "features.tar.gz").write_bytes(body)
    words = r"features\.tar\.gz is damaged" if kept else "no bal_train and eval folders"
    with pytest.raises(DownloadError, match=words):
        download("audioset", base_url=audioset.url, out=tmp_path)
    assert set(contents(tmp_path)) == {"features.tar.gz"}
