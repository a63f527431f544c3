"""What a file is that is no TFRecord file: told by its first bytes, so that a refusal can say how to go on."""

UNPACK = "unpack it first"
LOAD = "load it and use VideoDataset.from_tensors"
PICKLE = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
STARTS: dict[bytes | tuple[bytes, ...], str] = {  # beginning, or one of several: what it is
    b"\x1f\x8b\x08": f"a gzip file: {UNPACK}, with gunzip or gzip.open",
    (b"x\x01", b"x\x9c", b"x\xda"): f"a zlib stream: {UNPACK}, with zlib.decompress",
    b"BZh": f"a bzip2 file: {UNPACK}, with bunzip2",
    b"\xfd7zXZ": f"an xz file: {UNPACK}, with unxz",
    b"\x28\xb5\x2f\xfd": f"a Zstandard file: {UNPACK}, with unzstd",
    b"PK": f"a zip archive, as .npz and .pt files are: {UNPACK}, or {LOAD}",
    b"\x93NUMPY": f"an array of numpy: {LOAD}",
    b"\x89HDF": f"an HDF5 file: {LOAD}",
    b"PAR1": f"a Parquet file: {LOAD}",
    PICKLE: f"a pickle: if you trust its source, {LOAD}",
    b"<": "a text file, HTML or XML, perhaps an error that a server sent: fetch the file again",
}
TAR = 257  # where a tar archive says that it is one


def told(head: bytes) -> str:
    """What a file that begins so is, and what to do with it; "" if it cannot be told."""
    if head[TAR:].startswith(b"ustar"):
        return f"a tar archive: {UNPACK}, with tar -x"
    found = next((what for start, what in STARTS.items() if head.startswith(start)), "")
    text = head.decode("utf-8", "ignore")
    if found or not text.strip() or not all(sign.isprintable() or sign.isspace() for sign in text):
        return found
    return f"a text file, which begins {' '.join(text.split())[:20]!r}: {LOAD}"
