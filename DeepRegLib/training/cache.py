"""Results on disk under a key of all that they depend on; several processes may share a folder."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileFormatError
from ..io.files import PathLike, require_file, write_whole

#: Seconds between two looks at what another process works on.
_WAIT = 0.2
#: Bytes at the beginning and at the end of a file that stand for its content. In a compressed file
#: the end holds the check sum of all.
_ENDS = 1 << 16


def file_identity(path: PathLike) -> list[Any]:
    """Returns what tells a file (or a folder of files) from any other version of it, for a key.

    Its place does not count, so that a folder that was moved is known again.

    Raises:
        FileFormatError: If there is no such file, or it is empty.
    """
    path = require_file(path)
    if path.is_dir():
        return [file_identity(file) for file in sorted(path.iterdir()) if file.is_file()]
    state = path.stat()
    with path.open("rb") as stream:
        ends = hashlib.sha256(stream.read(_ENDS))
        stream.seek(max(0, state.st_size - _ENDS))
        ends.update(stream.read(_ENDS))
    return [path.name, state.st_size, state.st_mtime_ns, ends.hexdigest()]


def key_of(*parts: Any) -> str:
    """Returns a short key of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Cache:
    """A folder of safetensors files, one for each key.

    Args:
        folder: Where they are; made if it is missing.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileFormatError(
                f"The folder '{folder}' cannot be made ({error.strerror}); choose another."
            ) from error

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns what was put under a key; None if nothing was, or its file is damaged."""
        if not self.has(key):
            return None
        # Not mapped into memory: a file that is cut short later would end the process.
        return safetensors.torch.load(self._path(key).read_bytes())

    def has(self, key: str) -> bool:
        """Tells whether there is a whole file for a key."""
        path = self._path(key)
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt"):
                return True
        except (OSError, SafetensorError):  # damaged: made anew, and written over
            return False

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Puts tensors under a key, all or none.

        Raises:
            FileFormatError: If the folder cannot be written to.
        """
        content = safetensors.torch.save({k: t.contiguous() for k, t in tensors.items()})
        write_whole(self._path(key), lambda path: _write(path, content))

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Tells whether this process may work on a key; no other is told so in the meantime.

        The claim is a lock of the operating system, which ends with the process however it ends.
        """
        lock = self.folder / ".locks" / key
        lock.parent.mkdir(exist_ok=True)
        with lock.open("ab") as stream:
            mine = _try_lock(stream)
            try:
                yield mine
            finally:
                if mine:
                    _unlock(stream)

    def fill(
        self,
        tasks: Mapping[str, Callable[[], dict[str, Tensor]]],
        report: Callable[[float], None] = lambda fraction: None,
    ) -> int:
        """Sees to it that there is something under each key; returns how many were made here.

        What another process works on is waited for, or made here if that process ends.

        Args:
            tasks: What makes the tensors, by key.
            report: Called with the share that is done, before each task.
        """
        waiting, made = dict(tasks), 0
        while waiting:
            held: dict[str, Callable[[], dict[str, Tensor]]] = {}
            for position, (key, make) in enumerate(waiting.items()):
                left = len(waiting) - position + len(held)
                report(1.0 - left / len(tasks))
                if self.has(key):
                    continue
                with self.claim(key) as mine:
                    if not mine:
                        held[key] = make
                    elif not self.has(key):
                        self.put(key, make())
                        made += 1
            waiting = held
            if held:
                time.sleep(_WAIT)
        report(1.0)
        return made

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(stream: BinaryIO) -> bool:
        try:
            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(stream: BinaryIO) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(stream: BinaryIO) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks: work may be done twice, but whole
        return True

    def _unlock(stream: BinaryIO) -> None:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_UN)
