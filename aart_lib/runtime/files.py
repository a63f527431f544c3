"""What a running command needs of its machine: a folder to itself with room in it, whole files, word of signals."""

import io
import json
import os
import secrets
import shutil
import socket
import tempfile
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import lock_descriptor

UNFINISHED = ".aart-part"  # ending of files that are being written
_OWN: weakref.WeakSet = weakref.WeakSet()  # open lock files

if hasattr(os, "register_at_fork"):  # a lock lasts while any process has its file, and readers outlive a killed run
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _OWN])


def beside(path: Path) -> Path:
    """A name that nobody has yet, beside ``path``: what is made there has the rights that the user's umask gives."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")


@contextmanager
def replacing(path):
    """A binary file under a temporary name beside ``path``, renamed to it only when all went well.

    Raises: OSError with the name of ``path``, as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with open(temporary, "xb") as file:
            _locked(file)
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):  # writing does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _locked(file) -> bool | None:
    """Lock an open file until it is closed: True, False where another process has the lock, None without locks."""
    with suppress(OSError):  # a file system without locks
        return lock_descriptor(file.fileno(), blocking=False)
    return None


@contextmanager
def reserved(folder: Path, needed: int, *, name: str = "run"):
    """A folder for this process alone, made if need be, with room for about so many bytes, what it holds included.

    What killed runs left unfinished is removed. Commands of different ``name`` may share a folder.

    Raises: ValueError if another process is at work there, nothing can be written, or there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, needed)
    lock = folder / f".{name}.lock"
    with _own(folder, lock) as file:
        try:
            for path in [*folder.glob(f".*{UNFINISHED}"), *folder.glob(f"*/.*{UNFINISHED}")]:
                _remove_left(path)
            yield
        finally:
            try:
                lock.unlink(missing_ok=True)  # while nobody else can have it
            except OSError:  # as on Windows, where only a closed file can be deleted
                file.close()
                with suppress(OSError):  # another run has it by now
                    lock.unlink()


def _remove_left(path: Path) -> None:
    """Delete an unfinished file unless a living writer has its lock."""
    with suppress(OSError):
        with open(path, "ab") as file:
            free = _locked(file)
        if free:
            path.unlink()


def _own(folder: Path, lock: Path):
    """The open lock file, which tells others who is here; not in its first byte, which Windows locks."""
    try:
        file = open(lock, "a+b", buffering=0)
        if _locked(file) is False:
            with file:
                file.seek(1)
                holder = file.read().decode(errors="replace")
            raise ValueError(f"{folder} is in use by process {holder}; wait for it, or choose another --out")
        _OWN.add(file)
        file.truncate(0)
        file.write(f" {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}); choose another --out") from error
    return file if os.fstat(file.fileno()).st_nlink else _own(folder, lock)  # a run that just ended took it away


def _check_room(folder: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except (OSError, AttributeError):  # not every file system tells, nor every system
        return
    if free < needed:  # a run that is gone on with has written some of it
        needed -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if free < needed:
        sizes = f"room for {free / 1e6:,.1f} MB, and about {needed / 1e6:,.1f} MB will be written"
        raise ValueError(f"{folder} has {sizes}; make room, or choose another --out")


def cache_folder() -> Path:
    """$AART_CACHE, else ~/.cache/aart, else (home not writable) a folder for temporary files."""
    if os.environ.get("AART_CACHE"):
        return Path(os.environ["AART_CACHE"]).expanduser()
    with suppress(OSError, RuntimeError):  # not writable, or a user without a home, as in containers
        folder = Path("~/.cache/aart").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir()) / "aart"


def write_json(path, value) -> None:
    """JSON under a temporary name, then renamed; NaN is refused, since no other reader takes it."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path) -> dict:
    """What `write_json` wrote; nothing, {}, if the file is not there, damaged or another's."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def save_state(path, state: dict) -> None:
    """Write what a run needs to go on (tensors, numbers, lists, strings); local, never for exchange."""
    torch.save(state, whole := io.BytesIO())  # into a file, torch would hide the reason when it cannot be written
    with replacing(path) as file:
        file.write(whole.getbuffer())


def load_state(path) -> dict:
    """What `save_state` wrote; ``weights_only``, so that a stranger's file runs no code. Raises: ValueError."""
    try:
        return dict(torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path} is not a readable training state; delete it to start anew") from error
