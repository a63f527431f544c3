"""Points notebooks and README at one repository on GitHub: python notebooks/colab.py owner/name

Writes the badges "Open in Colab" and, in each setup cell, the variable REPOSITORY. Nothing else in the files changes,
not even their formatting; outputs that were fresh before stay marked as fresh. Needs nothing but Python.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/[A-Za-z0-9._-]+")
BADGE = re.compile(r"(colab\.research\.google\.com/github/)[^/\s\"')]+/[^/\s\"')]+(/blob/)")
VARIABLE = re.compile(r'("REPOSITORY = \\")[^"\\]*(\\")')  # as JSON stores the line


def code_hash(text: str) -> str:
    """The hash of the code cells that `execute.py` stores, of a notebook's text."""
    cells = json.loads(text)["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def point(text: str, repository: str) -> str:
    """The text of a notebook or a Markdown file with badges and REPOSITORY written; a stale hash stays stale."""
    changed = BADGE.sub(rf"\g<1>{repository}\g<2>", text)
    if not text.lstrip().startswith("{"):
        return changed
    changed = VARIABLE.sub(rf"\g<1>{repository}\g<2>", changed)
    before, after = code_hash(text), code_hash(changed)
    return changed.replace(f'"executed": "{before}"', f'"executed": "{after}"')


def write(path: Path, repository: str) -> bool:
    """Point one file; whether it changed. The file appears under its name only when it is complete."""
    with path.open(encoding="utf-8", newline="") as file:  # line ends stay as they are
        text = file.read()
    changed = point(text, repository)
    if changed == text:
        return False
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(changed)
    os.replace(temporary, path)
    return True


def files(folder: Path) -> list[Path]:
    """All notebooks of a project, and its README."""
    return [*sorted((folder / "notebooks").glob("[0-9]*.ipynb")), *filter(Path.is_file, [folder / "README.md"])]


def main(arguments: list[str] | None = None, folder: Path = HERE.parent) -> int:
    """Run the command; 0 = done, 2 = not a repository's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="OWNER/NAME", help="as in https://github.com/OWNER/NAME")
    repository = parser.parse_args(arguments).repository.removeprefix("https://github.com/").removesuffix("/")
    if not NAME.fullmatch(repository):
        print(
            f"REPO must be owner/name as on GitHub, got {repository!r}; try make colab REPO=you/aart", file=sys.stderr
        )
        return 2
    found = files(folder)
    changed = [path.name for path in found if write(path, repository)]
    print(f"{len(changed)} of {len(found)} files now point at github.com/{repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
