"""The command line: ``python -m aart_lib COMMAND``, its options and how it ends."""

import argparse
import errno
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from aart_lib.runtime.signals import on_signals, show_any_text

FULL = errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)  # Windows does not know EDQUOT
READER_ENDED = (
    "a process that reads was ended from outside, perhaps for want of memory, or of the shared memory of a container "
    "(docker run --shm-size gives more); --workers 0 needs none"
)
DATA = ("synthetic", "audioset", "yt8m-frame", "yt8m-video", "films")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(prog="python -m aart_lib", description="Understand, attack and repair a video model's attention.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    add = _command(commands, "reproduce", "train, attack and compare all defenses; write table and figures")
    _data_options(add)
    add.add_argument("--seeds", type=int, default=1, metavar="N", help="repeat with N seeds (default 1)")
    add.add_argument("--defenses", metavar="A,B,...", help="only these and the baseline (default: the preset's)")
    add.add_argument("--suite", default=None, help="attacks: quick, standard or strong (default: the preset's)")
    add.add_argument("--test-videos", type=int, metavar="N", help="attack so many (default: the preset's)")
    about = "defenses side by side, each on its share of the cores (default: one a core, on GPUs one after the other)"
    add.add_argument("--jobs", type=int, metavar="N", help=about)
    _hardware_options(add)
    _training_options(add)
    add.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="results go here")
    add.add_argument("--resume", action="store_true", help="go on with what --out holds already")

    add = _command(commands, "train", "train one defense; write DIR/model.safetensors")
    _data_options(add)
    add.add_argument("--defense", default="a-art", metavar="NAME", help="standard, adversarial, ..., a-art (default)")
    add.add_argument("--seed", type=int, default=0, help="of weights and order (default 0)")
    _hardware_options(add)
    _training_options(add)
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model goes here")
    add.add_argument("--resume", action="store_true", help="go on with a run that was stopped")

    add = _command(commands, "evaluate", "attack a trained model; write its row of results")
    add.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a model.safetensors")
    _data_options(add)
    add.add_argument("--suite", default="standard", help="attacks: quick, standard (default) or strong")
    add.add_argument("--test-videos", type=int, metavar="N", help="attack so many (default: the preset's)")
    add.add_argument("--segments", action="store_true", help="judge on YouTube-8M's rated segments (version 3)")
    about = "models whose attacks are tried too (suite strong; default: the others beside CHECKPOINT)"
    add.add_argument("--surrogates", type=Path, nargs="*", metavar="CHECKPOINT", help=about)
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="results.json goes here")

    add = _command(commands, "download", "fetch genuine shards or the vocabulary")
    add.add_argument("dataset", metavar="DATASET", help="yt8m-frame, yt8m-video, audioset or vocabulary")
    add.add_argument("--split", default="train", help="train (default), validate or test")
    add.add_argument("--version", type=int, default=2, help="of YouTube-8M: 2 (default), or 3 with rated segments")
    add.add_argument("--shards", default="1/1", metavar="X/Y", help="part X of Y, e.g. 1/1000 (default: all)")
    add.add_argument("--mirror", default="us", help="us (default), eu or asia")
    add.add_argument("--base-url", metavar="URL", help="another server with the same layout")
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="files go here")

    add = _command(commands, "describe", "statistics of a data set, the synthetic one beside genuine ones")
    _data_options(add)

    add = _command(commands, "films", "make a data set of video files, with pictures; needs the extra films")
    about = "a folder with a sub-folder a class, a CSV path,labels[,start,end][,group][,split], or a video"
    add.add_argument("source", type=Path, metavar="SOURCE", help=about)
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="use it as --data-dir; gone on with")
    add.add_argument("--fps", type=float, default=1.0, metavar="F", help="frames a second (default 1)")
    add.add_argument("--join", type=int, metavar="N", help="join clips of several classes, N a film: times are known")
    about = "of joined films: classes that fill time and are no labels"
    add.add_argument("--background", metavar="A,B,...", help=about)
    add.add_argument("--dims", type=int, default=256, metavar="D", help="numbers a frame, at most (default 256)")
    add.add_argument("--size", type=int, default=224, metavar="P", help="pixels of a picture's side (default 224)")
    about = "stop (default), or skip: leave out videos that cannot be used, and tell how many"
    add.add_argument("--on-bad-video", default="stop", choices=("stop", "skip"), help=about)

    add = _command(commands, "look", "draw one video file: attention over its pictures, clean and attacked")
    add.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a model trained on films")
    add.add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    add.add_argument("--out", type=Path, required=True, metavar="PICTURE", help="a .png")
    about = "pgd (default; all frames), frame (one frame) or pixels (of all frames)"
    add.add_argument("--attack", default="pgd", choices=("pgd", "frame", "pixels"), help=about)
    add.add_argument("--epsilon", type=float, metavar="E", help="instead of the model's own; of pixels 1/255")
    add.add_argument("--data-dir", type=Path, metavar="DIR", help="the films it was trained on (default: near it)")

    add = _command(commands, "page", "write the explorer as one file that needs no kernel and no network")
    add.add_argument("--out", type=Path, required=True, metavar="FILE", help="an .html")

    add = _command(commands, "report", "draw report.md and the figures from results.json")
    add.add_argument("results", type=Path, metavar="RESULTS", help="a results.json")
    add.add_argument("--out", type=Path, metavar="DIR", help="default: beside it")
    add.add_argument("--readme", type=Path, metavar="FILE", help="write the table between its result marks too")
    return top


def _command(commands, name: str, about: str):
    return commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")


def _data_options(add) -> None:
    add.add_argument("--data", default="synthetic", metavar="NAME", help=f"{', '.join(DATA)} (default synthetic)")
    add.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the shards (synthetic: not needed)")
    about = "only the K most frequent labels of the train split, or these names or verticals"
    add.add_argument("--labels", metavar="K|A,B,...", help=about)
    add.add_argument("--preset", default="small", metavar="NAME", help="quick, small (default) or full")
    about = "stop (default), or skip: leave out damaged records, and tell at the end how many, where and why"
    add.add_argument("--on-bad-record", default="stop", choices=("stop", "skip"), help=about)


def _hardware_options(add) -> None:
    add.add_argument("--batch-size", type=int, metavar="N", help="videos a step, of all processes together")
    add.add_argument("--accumulate", type=int, metavar="N", help="parts a step, one after another, to save memory")
    add.add_argument("--recompute", action="store_true", help="recompute activations instead of keeping them")
    add.add_argument("--workers", type=int, metavar="N", help="processes that read (default 0; preset full: 2)")
    add.add_argument("--sampling", metavar="NAME", help="frames of long videos: uniform (default), random, contiguous")


def _training_options(add) -> None:
    add.add_argument("--epochs", type=int, help="instead of the preset's")
    add.add_argument("--epsilon", type=float, metavar="E", help="ε in feature units, a byte step is 4/255")
    add.add_argument("--norm", metavar="N", help="linf, l2-frame or l2-clip (default: the data set's own)")


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    0 = done, 2 = the user's mistake, bad input or a full disk, 1 = a training had to stop, 130 = stopped by Ctrl-C or
    SIGTERM; one sentence on standard error for each but the first.
    """
    show_any_text()
    options, signals = parser().parse_args(arguments), []
    # Threads that wait for each other spin a little, then sleep: beside any other work, endless spinning makes training
    # ten times slower, and sleeping at once costs half as much again on a quiet machine. GNU's OpenMP reads this.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with on_signals(lambda number, frame: signals.append(number)):  # an import broken off half-way hides the reason
        # torch loads only when there is work to do
        from aart_lib.cli import commands
        from aart_lib.data.records import Skipped
        from aart_lib.runtime import processes
        from aart_lib.steps import TrainingStopped

    skips = getattr(options, "on_bad_record", "stop") == "skip"
    options.skipped = Skipped() if skips else None  # counts what is left out

    again = "the same command" + " with --resume" * hasattr(options, "resume")
    try:
        if signals:
            raise KeyboardInterrupt
        with on_signals(signal.default_int_handler), ExitStack() as options.held:  # what is given back at the end
            processes.start()
            getattr(commands, f"run_{options.command}")(options)
    except (ValueError, OSError) as error:
        if os.environ.get("AART_DEBUG"):
            raise
        full = f"; make room, then {again} goes on" * (getattr(error, "errno", None) in FULL)
        print(f"aart: {_sentence(error)}{full}", file=sys.stderr)
        return 2
    except (TrainingStopped, processes.ProcessLost) as error:
        print(f"aart: {'training stopped: ' * isinstance(error, TrainingStopped)}{error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # what torch says of reader processes that ended
            raise
        print(f"aart: {READER_ENDED}; {again} goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\naart: stopped; {again} goes on from there", file=sys.stderr)
        return 130
    finally:
        if skips and processes.is_main():
            print(f"aart: {options.skipped}", file=sys.stderr)
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror.lower()}"
    return " ".join(str(error).split())
