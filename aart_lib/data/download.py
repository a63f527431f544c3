"""Fetch the published shards in parallel, verified where there is a checksum, and from where an earlier run stopped.

YouTube-8M names every shard and its md5 in a plan, ``{base}/{version}/download_plans/{frame|video}_{split}.json``,
and serves it at ``http://{mirror}.data.yt8m.org/{version}/{frame|video}/{split}/NAME``. While a shard is on its
way it is called ``NAME.part``; it gets its name when its md5 is right. The server speaks plain http: the md5
finds accidents, not an attacker on the line.

Source: data.yt8m.org/download.py (the official script), research.google.com/{youtube8m,audioset}/download.html.
"""

import base64
import gzip
import hashlib
import os
import re
import shutil
import string
import tarfile
import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests
from tqdm.auto import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError as TransportError

from aart_lib.runtime.files import replacing

CHOICES = {
    "dataset": ("yt8m-frame", "yt8m-video", "audioset", "vocabulary"),
    "split": ("train", "validate", "test"),
    "mirror": ("us", "eu", "asia"),
    "version": (2, 3),
}
DEFAULTS = {"split": "train", "shards": "1/1", "version": 2, "mirror": "us"}
ONE_FILE = {"vocabulary": ("split", "shards", "version", "mirror"), "audioset": ("split", "shards", "version")}
TIMEOUT = (10, 60)  # seconds: to connect, between two packets
ATTEMPTS = 5  # without a single new byte, before the server counts as out of reach
BACKOFF = 1.0  # seconds, doubled from one attempt to the next
CHUNK = 1 << 16  # bytes
SAFE_NAME = re.compile(r"(?!.*\.part$)[A-Za-z0-9_-][A-Za-z0-9._-]*")  # one plain file name: no folder, not hidden
SHARD_LETTERS = string.ascii_letters + string.digits


class DownloadError(ValueError):
    """Why a download ended, in one sentence; what has arrived stays, and the same call goes on from there."""


class _FileError(DownloadError):
    """One file is missing or wrong; the others are still worth fetching."""


class File(NamedTuple):
    """A file to be fetched into the output folder, or one that is there."""

    path: Path
    url: str
    md5: str | None = None  # None: the one that the server sends with the file, if any


def download(
    dataset, *, split="train", shards="1/1", mirror="us", base_url=None, out, workers=4, version=2
) -> list[File]:
    """The files in the folder ``out``, fetched unless they are there: all of them, or an error.

    dataset: yt8m-frame, yt8m-video, audioset (one archive, from which a train and an eval shard are unpacked,
    whatever the ``split``), or vocabulary (of YouTube-8M). split: train, validate or test. shards: "X/Y", the X-th
    of Y parts of the shards, chosen by the md5 of their names as the official script does. mirror: us, eu or asia.
    base_url: a server with the same paths, in place of the official ones. workers: files at a time.
    version: of YouTube-8M; 2 (May 2018), or 3 for the validation and test shards with rated segments.

    Returns: the files with the md5 that they were found to have, None where there was none to compare.
    Raises: DownloadError.
    """
    _check(dataset, {"split": split, "shards": shards, "version": version, "mirror": mirror}, base_url)
    out, base, session = Path(out), base_url and base_url.rstrip("/"), _session(workers)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if dataset == "vocabulary":
            url = f"{base or 'https://research.google.com'}/youtube8m/csv/2/vocabulary.csv"
            return _fetch_all(session, [File(out / "vocabulary.csv", url)], workers)
        if dataset == "audioset":
            path = f"{mirror}_audioset/youtube_corpus/v1/features/features.tar.gz"
            archive = File(out / "features.tar.gz", f"{base or 'https://storage.googleapis.com'}/{path}")
            (found,) = _fetch_all(session, [archive], workers)
            return [found._replace(path=path) for path in _unpack_audioset(found.path)]
        level = dataset.removeprefix("yt8m-")
        plan = _fetch_plan(session, f"{base or 'http://data.yt8m.org'}/{version}/download_plans/{level}_{split}.json")
        folder = f"{base or f'http://{mirror}.data.yt8m.org'}/{version}/{level}/{split}"
        local = _numbered if _ignores_case(out) else str
        files = [File(out / local(name), f"{folder}/{name}", plan[name]) for name in _select(plan, shards)]
        return _fetch_all(session, files, workers)
    except requests.RequestException as error:
        place = str(error.request.url) if error.request else base
        reason = f"{type(error).__name__} in {ATTEMPTS} attempts"
        advice = "check the network or try another mirror; the same command goes on where this one stopped"
        raise DownloadError(f"{place} is out of reach ({reason}); {advice}") from error
    except OSError as error:
        raise DownloadError(f"cannot write to {error.filename or out}: {error.strerror or error}") from error


def _check(dataset, options: dict, base_url: str | None) -> None:
    """Raises: DownloadError for what is not known, and for an option that would change nothing."""
    for name, value in {"dataset": dataset, **options}.items():
        if name in CHOICES and value not in CHOICES[name]:
            raise DownloadError(f"unknown {name} {value!r}; known are {', '.join(map(str, CHOICES[name]))}")
    for name in ONE_FILE.get(dataset, ["mirror"] if base_url else []):
        if options[name] != DEFAULTS[name]:
            why = "is one file" if dataset in ONE_FILE else "comes from --base-url"
            raise DownloadError(f"--{name} changes nothing for {dataset}, which {why}; leave it out")
    if base_url is not None and not re.match(r"https?://[^/]", base_url):
        raise DownloadError(f"base_url must begin with http:// or https:// and name a server, got {base_url!r}")


def _select(names, shards: str) -> list[str]:
    """The names of part X of Y. Raises: DownloadError if there is no such part or nothing in it."""
    match = re.fullmatch(r"(\d{1,9})[/,](\d{1,9})", shards)
    part, parts = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise DownloadError(f"shards must be X/Y with 1 <= X <= Y, as 1/1000, got {shards!r}")
    chosen = [name for name in sorted(names) if int(hashlib.md5(name.encode()).hexdigest(), 16) % parts == part - 1]
    if not chosen:
        raise DownloadError(f"none of the {len(names)} shards falls into part {shards}; take a larger one, as 1/1")
    return chosen


def _session(workers: int) -> requests.Session:
    """Connections that try again after growing pauses, or the pause that the server asks for."""
    session = requests.Session()
    busy = (408, 429, 500, 502, 503, 504)
    retries = Retry(ATTEMPTS - 1, backoff_factor=BACKOFF, status_forcelist=busy)
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=workers, max_retries=retries))
    session.headers["Accept-Encoding"] = "identity"  # bytes as stored: ranges and md5 speak of the same thing
    return session


def _fetch_plan(session: requests.Session, url: str) -> dict[str, str]:
    """{shard name: md5} of a download plan, every name and md5 checked. Raises: DownloadError."""
    response = session.get(url, timeout=TIMEOUT)
    _start_and_size(response, 0)
    try:
        plan = response.json()
        files = plan.get("files", plan)
        wrong = [n for n, md5 in files.items() if not SAFE_NAME.fullmatch(n) or not re.fullmatch(r"[0-9a-f]{32}", md5)]
    except (requests.JSONDecodeError, AttributeError, TypeError) as error:
        raise DownloadError(f"{url} is not a download plan, a JSON map from file names to md5 sums") from error
    if wrong:
        raise DownloadError(f"{url}: {wrong[0]!r} is not a plain file name with an md5 sum; nothing was fetched")
    return files


def _ignores_case(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix=".case-", dir=folder) as probe:
        return Path(probe).with_name(Path(probe).name.upper()).exists()


def _numbered(name: str) -> str:
    """The official script's name for a shard (trainaB -> train0027), for file systems that take aB for Ab."""
    found = re.fullmatch(r"(.*)([A-Za-z0-9])([A-Za-z0-9])\.tfrecord", name)
    if found is None:
        return name
    first, second = (SHARD_LETTERS.index(letter) for letter in found.group(2, 3))
    return f"{found[1]}{first * len(SHARD_LETTERS) + second:04d}.tfrecord"


def _fetch_all(session: requests.Session, files: list[File], workers: int) -> list[File]:
    """Fetch a few files at a time; a missing or wrong one is reported after the others have arrived."""
    stop = threading.Event()
    bar = tqdm(unit="B", unit_scale=True, mininterval=0.5, desc=f"{len(files)} files")
    with bar, ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_fetch, session, file, bar, stop) for file in files]
        try:
            for job in as_completed(jobs):
                if not isinstance(job.exception(), _FileError):
                    job.result()
        except BaseException:  # an interrupt from the keyboard too: no thread may go on writing
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failures = [job.exception() for job in jobs if job.exception()]
    if failures:
        raise DownloadError(f"{len(failures)} of {len(files)} files could not be fetched; {failures[0]}")
    return [job.result() for job in jobs]


def _fetch(session: requests.Session, file: File, bar, stop: threading.Event) -> File:
    """The file under its final name: complete, and with the right md5. Raises: DownloadError."""
    part = file.path.with_name(f"{file.path.name}.part")
    if file.path.is_file() and file.md5 in (None, _md5(file.path)):
        return file
    resumed, barren = part.exists(), 0
    while barren < ATTEMPTS:
        before = _size(part)
        complete, md5 = _receive(session, file, part, bar, stop)
        if complete and md5 in (None, _md5(part)):
            os.replace(part, file.path)
            return file._replace(md5=md5)
        if complete:
            part.unlink()
            if not resumed:
                raise _FileError(f"{file.url}: the md5 of what arrived is not {md5}; it was thrown away")
            resumed = False  # the old beginning may have been another file's: once more, from the start
        barren = 0 if _size(part) > before else barren + 1
        stop.wait(BACKOFF * 2**barren)
    raise DownloadError(f"{file.url}: the connection is cut again and again; the same command goes on from there")


def _receive(session: requests.Session, file: File, part: Path, bar, stop) -> tuple[bool, str | None]:
    """Append to ``part`` what is missing, once; returns (is it complete, the md5 it must have)."""
    have, cut = _size(part), False
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        start, size = _start_and_size(response, have)
        _check_room(part.parent, (size or 0) - start)
        with open(part, "ab" if start else "wb") as target:
            try:
                while start != size and (chunk := response.raw.read(CHUNK, decode_content=False)):
                    if stop.is_set():
                        raise DownloadError("stopped, because another file failed")
                    target.write(chunk)
                    bar.update(len(chunk))
            except TransportError:
                cut = True
    announced = re.search(r"md5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))
    md5 = file.md5 or (announced and base64.b64decode(announced[1]).hex())
    return not cut and _size(part) >= (size or 0), md5


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        room = f"needs {needed / 1e6:,.1f} MB more for the next file and has {free / 1e6:,.1f} MB free"
        raise DownloadError(f"the disk of {folder} {room}; make room, or take a smaller part with shards X/Y")


def _start_and_size(response, have: int) -> tuple[int, int | None]:
    """(byte of the file at which the body starts, full size in bytes or None if it is not told).

    Raises: _FileError if the server does not have the file.
    """
    status = response.status_code
    if status == 200:  # the whole file, asked for or not
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    told = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if status == 206 and told:
        return have, int(told[1])
    if status == 416 and have:  # nothing comes after the bytes we have: complete, or the md5 will tell
        return have, have
    raise _FileError(f"{response.url}: the server answers {status} {response.reason}; check data set, split, version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack_audioset(archive: Path) -> list[Path]:
    """The balanced train and the evaluation set, one shard each, from the archive's thousands of small files.

    TFRecord files are joined by writing one behind the other; the small ones would overwrite each other on file
    systems that do not tell aB from Ab.
    """
    paths = [archive.with_name(f"audioset_{split}.tfrecord") for split in ("bal_train", "eval")]
    try:
        with replacing(paths[0]) as train, replacing(paths[1]) as test, gzip.open(archive) as stream:
            shards = {"bal_train": train, "eval": test}
            members = tarfile.open(fileobj=stream, mode="r|")
            for member in members:
                path = PurePosixPath(member.name)
                body = members.extractfile(member) if member.isfile() else None
                if body and path.suffix == ".tfrecord" and path.parent.name in shards:
                    shutil.copyfileobj(body, shards[path.parent.name])
            while stream.read(1 << 20):
                pass  # on to the checksum at the end, so that a cut archive does not pass for a small one
            if not (train.tell() and test.tell()):
                raise DownloadError(f"{archive} has no bal_train and eval folders; is it AudioSet's feature archive?")
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DownloadError(f"{archive} is damaged ({error}); delete it and run the same command again") from error
    return paths
