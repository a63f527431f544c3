"""Runs notebooks top to bottom and stores what they show: python notebooks/execute.py [01 05 ...] [--quick]

Stored are pictures and text, never what changes from run to run or from machine to machine: no widget state, no
progress bars, no times, no folder names. A kernel is given nothing that could change what is shown: no genuine data, no
GPU, nobody's settings. A hash of the executed code lets a test tell stale outputs.
"""

import argparse
import hashlib
import math
import os
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty

import matplotlib
import nbformat
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from traitlets import Type, default

HERE = Path(__file__).resolve().parent
LARGEST = 1_500_000  # bytes of a stored notebook
WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT = {  # of the environment: where programs and homes are, what systems need to start any, and how many cores to use
    *("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS"),
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "APPDATA", "LOCALAPPDATA"),
    *("PROGRAMDATA", "NUMBER_OF_PROCESSORS"),
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


class _Channel(AsyncZMQSocketChannel):
    """Looks again every tenth of a second: a message that a widget sends can swallow the one signal that one came."""

    async def get_msg(self, timeout=None):
        until = time.monotonic() + (math.inf if timeout is None else timeout)
        while (left := until - time.monotonic()) > 0.1:
            with suppress(Empty):
                return await super().get_msg(0.1)
        return await super().get_msg(max(left, 0))


class _Client(AsyncKernelClient):
    shell_channel_class = iopub_channel_class = Type(_Channel)


class _Kernels(AsyncKernelManager):
    """Kernels spoken to by files, not ports: two that start at once may pick one port, and wait for ever."""

    client_factory = Type(_Client)

    @default("transport")
    def _files_where_there_are_any(self) -> str:
        return "tcp" if os.name == "nt" else "ipc"

    @default("ip")
    def _place(self) -> str:
        if self.transport == "tcp":
            return "127.0.0.1"
        self._folder = tempfile.TemporaryDirectory(prefix="kernel-")  # gone with this object
        return str(Path(self._folder.name, "ipc"))


def code_hash(notebook) -> str:
    """16 hexadecimal digits of the code cells in their order: other code, other digits."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def size(notebook) -> int:
    """Bytes of the notebook as stored."""
    return len(nbformat.writes(notebook).encode())


def environment(**more: str) -> dict[str, str]:
    """What a kernel is given: of this process's environment only what cannot change an output, and ``more``."""
    kept = {name: value for name, value in os.environ.items() if name.upper() in KEPT}
    settings = {"MATPLOTLIBRC": str(Path(matplotlib.get_data_path(), "matplotlibrc")), "CUDA_VISIBLE_DEVICES": "-1"}
    return kept | settings | {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"} | more


def run(notebook, folder=HERE, *, library=HERE.parent, env=None, timeout: int = 900):
    """The notebook with the outputs of one run from an empty kernel in ``folder``. Raises: CellExecutionError.

    ``library`` is the folder that `aart_lib` is imported from, installed or not; ``env`` the kernel's environment, by
    default `environment()`. Nobody's startup files run.
    """
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(folder)}}
    options = {"kernel_name": "python3", "resources": resources, "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, timeout=timeout, kernel_manager_class=_Kernels, **options)
    env = environment() if env is None else dict(env)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(library), env.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as fresh:
        return client.execute(env=env | {"IPYTHONDIR": fresh})


def tidy(notebook):
    """The same notebook without what does not belong into a stored one; marks it as executed."""
    notebook.metadata = nbformat.from_dict({**METADATA, "aart": {"executed": code_hash(notebook)}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_tidy_output, cell.outputs) if output is not None]
    return notebook


def _tidy_output(output):
    """An output worth storing, or None."""
    if output.output_type == "stream":
        if output.name == "stderr" and ("\r" in output.text or "%|" in output.text):  # progress bars
            return None
        output.text = _without_places(output.text)
    elif "data" in output:
        if output.data.pop(WIDGET, None) and "image/png" not in output.data:  # it lives only while its kernel does
            return None
        for kind, value in output.data.items():
            if kind.startswith("text/") and isinstance(value, str):
                output.data[kind] = _without_places(value)
    return output


def _without_places(text: str) -> str:
    """Text without folder names of this machine and without memory addresses."""
    places = {str(HERE): ".", str(HERE.parent): ".."}
    places |= {sys.prefix: "python", tempfile.gettempdir(): "temporary", str(Path.home()): "~"}
    for place in sorted(filter(None, places), key=len, reverse=True):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"(?=[/\s'\"):,]|$)", places[place], text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", metavar="NN", help="numbers of notebooks; none = all")
    parser.add_argument("--quick", action="store_true", help="the tests' shorter version, outputs are thrown away")
    options = parser.parse_args(arguments)
    paths = sorted(HERE.glob("[0-9]*.ipynb"))
    if options.numbers:
        paths = [path for path in paths if path.name[:2] in {f"{int(number):02d}" for number in options.numbers}]
    if not paths:
        sys.exit(f"no such notebook; there are {', '.join(sorted(p.name for p in HERE.glob('[0-9]*.ipynb')))}")
    env = environment(AART_QUICK="1") if options.quick else environment()
    for path in paths:
        started = time.perf_counter()
        notebook = tidy(run(nbformat.read(path, as_version=4), env=env))
        if size(notebook) > LARGEST:
            sys.exit(f"{path.name} would have {size(notebook):,} bytes, allowed are {LARGEST:,}; store fewer pictures")
        if not options.quick:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {size(notebook) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
