"""Whether an image file is whole, for formats whose half files ITK reads without complaint."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

from ..errors import FileFormatError

#: Formats that hold plain voxels after a header (of at least so many bytes), with nothing that
#: would reveal a missing end.
_RAW_HEADERS = {".gipl": 256, ".vtk": 0, ".mrc": 1024, ".rec": 1024}


def check_complete(path: Path) -> None:
    """Refuses NIfTI, gzip and TIFF files that are cut short.

    ITK reads a NIfTI file that ends too early and leaves the rest of the volume empty.

    Raises:
        FileFormatError: If the end of the file is missing or its compression is damaged.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        _check_gzip(path)
    elif name.endswith(".nii"):
        with path.open("rb") as stream:
            needed = _nifti_size(stream.read(540))
        _compare(path, needed, path.stat().st_size)
    elif name.endswith((".tif", ".tiff")):
        _check_tiff(path)


def check_raw_size(path: Path, voxel_bytes: int) -> None:
    """Refuses raw formats whose file is smaller than its voxels.

    Raises:
        FileFormatError: If bytes are missing.
    """
    header = _RAW_HEADERS.get(path.suffix.lower())
    if header is None:
        return
    if path.suffix.lower() == ".vtk":
        with path.open("rb") as stream:
            head = stream.read(1024)
        if b"BINARY" not in head:
            return
        table = head.find(b"LOOKUP_TABLE")
        header = head.find(b"\n", table) + 1 if table >= 0 else 0
    _compare(path, header + voxel_bytes, path.stat().st_size)


def _check_gzip(path: Path) -> None:
    """Unpacks the whole stream, which also compares its check sum."""
    size, head = 0, b""
    try:
        with gzip.open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                head = head or block[:540]
                size += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(
            f"'{path.name}' is cut short or damaged (its compressed data end too early or do not "
            "fit their check sum); copy or export it again."
        ) from error
    if path.name.lower().endswith(".nii.gz"):
        _compare(path, _nifti_size(head), size)


def _nifti_size(head: bytes) -> int:
    """Returns the least size of a NIfTI file from its header; 0 if it is none."""
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(order + "i", head)[0] == 348:
            dim = struct.unpack_from(order + "8h", head, 40)
            bits = struct.unpack_from(order + "h", head, 72)[0]
            offset = struct.unpack_from(order + "f", head, 108)[0]
        elif len(head) >= 540 and struct.unpack_from(order + "i", head)[0] == 540:
            dim = struct.unpack_from(order + "8q", head, 16)
            bits = struct.unpack_from(order + "h", head, 14)[0]
            offset = struct.unpack_from(order + "q", head, 168)[0]
        else:
            continue
        count = min(max(dim[0], 0), 7)
        return int(offset) + prod(max(n, 1) for n in dim[1 : count + 1]) * bits // 8
    return 0


def _check_tiff(path: Path) -> None:
    """Follows the chain of pages to its end."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return
        big = struct.unpack_from(order + "H", head, 2)[0] == 43
        pointer, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
        width, step = struct.calcsize(pointer), struct.calcsize(number)
        page = struct.unpack_from(order + pointer, head, 8 if big else 4)[0]
        seen = set()
        while page and page not in seen:
            seen.add(page)
            if page + step > size:
                _compare(path, page + step, size)
            stream.seek(page)
            count = struct.unpack(order + number, stream.read(step))[0]
            end = page + step + count * entry + width
            _compare(path, end, size)
            stream.seek(end - width)
            page = struct.unpack(order + pointer, stream.read(width))[0]


def _compare(path: Path, needed: int, found: int) -> None:
    if found < needed:
        raise FileFormatError(
            f"'{path.name}' is cut short: {needed} bytes are expected from its header, but "
            f"{found} are there; copy or export it again."
        )
