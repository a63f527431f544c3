"""What a running command needs of its machine: a folder to itself with room in it, whole files, word of signals."""

import os
import shutil
import signal
import socket
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nothing is locked there, and nothing left over is removed
    fcntl = None  # type: ignore[assignment]  # what mypy takes for the only kind of module

UNFINISHED = ".aart-part"  # ending of files that are being written


@contextmanager
def on_signals(handler):
    """SIGINT and SIGTERM go to a handler for a while; only the main thread may ask for them."""
    own = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)} if own else {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def replacing(path):
    """A binary file under a temporary name beside ``path``, renamed to it only when all went well.

    Raises: OSError with the name of ``path``, as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
    try:
        with open(handle, "wb") as file:
            _locked(file)
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:  # writing does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _locked(file) -> bool:
    """Whether this process has the lock of an open file now; False where the system has no locks.

    It is a lock of this process alone and ends with it: readers that it started outlive a killed run by seconds.

    Raises: BlockingIOError if another process has it.
    """
    try:
        return fcntl is not None and fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is None
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False


@contextmanager
def reserved(folder: Path, needed: int, *, name: str = "run"):
    """A folder for this process alone, made if need be, with room for about so many bytes, what it holds included.

    What killed runs left unfinished is removed. Commands of different ``name`` may share a folder.

    Raises: ValueError if another process is at work there, nothing can be written, or there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, needed)
    lock = folder / f".{name}.lock"
    with _own(folder, lock):
        try:
            for path in [*folder.glob(f".*{UNFINISHED}"), *folder.glob(f"*/.*{UNFINISHED}")]:
                with suppress(OSError), open(path, "ab") as file:
                    if _locked(file):  # a living writer has the lock
                        path.unlink()
            yield
        finally:
            lock.unlink(missing_ok=True)


def _own(folder: Path, lock: Path):
    """The open lock file, which tells others who is here."""
    try:
        file = open(lock, "a+b", buffering=0)
        _locked(file)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}".encode())
    except BlockingIOError:
        holder = lock.read_text(errors="replace")
        raise ValueError(f"{folder} is in use by process {holder}; wait for it, or choose another --out") from None
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}); choose another --out") from error
    return file if os.fstat(file.fileno()).st_nlink else _own(folder, lock)  # a run that just ended took it away


def _check_room(folder: Path, needed: int) -> None:
    free, there = shutil.disk_usage(folder).free, lambda: (p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if free < needed and free < needed - sum(there()):  # a run that is gone on with has written some of it
        sizes = f"room for {free / 1e6:,.1f} MB, and about {needed / 1e6:,.1f} MB will be written in all"
        raise ValueError(f"{folder} has {sizes}; make room, or choose another --out")
