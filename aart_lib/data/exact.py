"""Numbers and names that are taken as they are, or refused: never cut down in silence."""

from collections.abc import Iterable

import numpy as np


def one_of(what: str, name, known: Iterable[str]) -> None:
    """Raises: ValueError for an unknown name, with the known ones."""
    if name not in (names := list(known)):
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(names)}")


def integers(values, what: str) -> np.ndarray:
    """As int64, of any shape. Raises: ValueError for anything that is no integer, booleans too."""
    found = _array(values if hasattr(values, "__array__") else list(values) if np.iterable(values) else values)
    if found.size and (found.dtype.kind not in "iu" or found.max() >= 2**63):
        raise ValueError(f"{what} must be integers, got {found.dtype} {_short(found.tolist())}")
    return found.astype(np.int64)


def numbers(name: str, value, *, whole: bool) -> np.ndarray:
    """A list that a record holds as it is, with ``whole`` of integers only. Raises: ValueError."""
    array = _array(value)
    kinds = {_array(one).dtype.kind for one in value} - {"u"} if isinstance(value, (list, tuple)) else set()
    kind, whole = array.dtype.kind, whole and array.size > 0
    sound = array.ndim == 1 and kind in ("iu" if whole else "iuf") and kinds <= {kind}  # a mixture became floats
    most = np.finfo(np.float32).max if kind == "f" else np.iinfo(np.int64).max
    if not (sound and (np.abs(array[np.isfinite(array)]) <= most).all()):
        wanted = "integers of 64 bits" if whole else "integers of 64 bits, or of floats of 32"
        got = f"{array.dtype} {list(array.shape)}: {_short(value)}"
        raise ValueError(f"`{name}` must be a list of {wanted}, got {got}")
    return array


def byte_table(name: str, table) -> np.ndarray:
    """A byte list, uint8 [T,n]. Raises: ValueError for anything else than integers from 0 to 255."""
    array = _array(table)
    if array.dtype.kind not in "iu" or array.ndim != 2 or (array.size and not 0 <= array.min() <= array.max() <= 255):
        got = f"{array.dtype} {list(array.shape)}"
        got += f" from {array.min()} to {array.max()}" if array.size and array.dtype.kind in "iu" else ""
        raise ValueError(f"list `{name}` must be bytes [T,n], 0 to 255, got {got}; quantize makes bytes of features")
    return array.astype(np.uint8, copy=False)


def _array(value) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths; bfloat16; a tensor with a gradient
        return np.asarray([None])


def _short(value) -> str:
    return " ".join(str(value).split())[:40]
