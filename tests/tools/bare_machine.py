"""The command line on a machine without anything that only POSIX has; a program for test_any_machine.py.

    python tests/tools/bare_machine.py '[["describe"], ["train", "--out", "DIR"]]'

Other packages keep what they found when they were imported; for the library it is gone. As on Windows, a file that is
open here can neither be deleted nor replaced, no file name may have a character that is reserved there, and processes
are spawned, which begin by running this file, so that they are no better off. 128 files may be open at once.
"""

import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import torch.utils.data  # noqa: F401 (what is others' has what it needs)

ROOT = Path(__file__).resolve().parents[2]
GONE = "pread preadv pwrite fork forkpty register_at_fork setpgrp setpgid setsid killpg getuid geteuid getgid "
GONE += "fchmod fchown chown uname sched_getaffinity getloadavg nice mkfifo link symlink"
MODULES = "fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"


def refused(*arguments, **options):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(arguments[0]))


def unless_open(call):
    """A function that deletes or renames, but no file that this process has open."""

    def checked(*paths, **options):
        known = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
        if any(os.path.realpath(path) in known for path in paths if not str(path).startswith("/dev/shm/")):
            refused(*paths)  # what multiprocessing itself shares, it shares in another way elsewhere
        return call(*paths, **options)

    return checked


def look(event: str, arguments: tuple) -> None:
    """An audit hook: names of new files and folders are such as Windows takes."""
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in ("os.mkdir", "os.rename"):
        path = arguments[event == "os.rename"]
        name = "" if isinstance(path, int) else os.path.basename(os.fsdecode(path))
        if set(name) & set('<>:"|?*\\') or name.endswith((" ", ".")):
            raise OSError(errno.EINVAL, "not a name on Windows", name)


def take_away() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    for name in GONE.split():
        delattr(os, name)
    sys.modules |= dict.fromkeys(MODULES)
    del errno.EDQUOT, signal.SIGHUP, signal.SIGUSR1, signal.setitimer
    os.chmod = refused
    os.unlink, os.remove, os.rename, os.replace = map(unless_open, (os.unlink, os.remove, os.rename, os.replace))
    multiprocessing.set_start_method("spawn", force=True)
    warnings.filterwarnings("error", category=EncodingWarning, module="aart_lib")
    sys.addaudithook(look)


take_away()

if __name__ == "__main__":
    from aart_lib.cli.parser import main

    sys.exit(max(main(command) for command in json.loads(sys.argv[1])))
