"""Result files: checked before a long run, and written all together or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import FileFormatError
from .geometry.grid import Grid
from .io.files import PathLike, check_writable
from .io.itk_transform import check_grid
from .job import plain

#: A file and the function that writes it at the path that it is given.
Writer = tuple[PathLike, Callable[[Path], None]]


def check_outputs(
    kinds: Sequence[tuple[PathLike, str]],
    inputs: Iterable[PathLike] = (),
    grids: Mapping[PathLike, Grid] | None = None,
) -> None:
    """Makes sure, before a long run, that all results can be written.

    Args:
        kinds: Files and what each shall hold, a key of `io.files.WRITABLE`.
        inputs: Files that must not be overwritten.
        grids: Grids of the images and displacement images among the files.

    Raises:
        FileFormatError: If a file cannot be written, is an input, or is named twice.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for path, kind in kinds:
        check_writable(path, kind)
        real = os.path.realpath(path)
        if real in taken:
            raise FileFormatError(
                f"'{path}' is an input or is named twice; give each output a name of its own."
            )
        taken.add(real)
    for path, grid in (grids or {}).items():
        check_grid(grid, path)


def write_together(writers: Sequence[Writer]) -> None:
    """Writes several files completely, or leaves everything as it was.

    Raises:
        FileFormatError: If one of them cannot be written.
    """
    with contextlib.ExitStack() as stack:
        staged = []
        for path, write in writers:
            path = Path(path)
            try:
                folder = Path(stack.enter_context(
                    tempfile.TemporaryDirectory(prefix=".deepreg-", dir=path.parent)
                ))  # fmt: skip
            except OSError as error:
                raise FileFormatError(_sentence(path, error.strerror)) from error
            temporary = folder / path.name
            _write(path, temporary, write)
            staged.append((path, temporary, folder / f"old-{path.name}"))
        _rename(staged)


def json_writer(content: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a function that writes a report as JSON."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8", newline="\n")

    return write


def _write(path: Path, temporary: Path, write: Callable[[Path], None]) -> None:
    try:
        write(temporary)
    except FileFormatError as error:
        # The user knows the file by its own name, not by that of the temporary one.
        raise FileFormatError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise FileFormatError(_sentence(path, error.strerror)) from error


def _rename(staged: Sequence[tuple[Path, Path, Path]]) -> None:
    """Puts whole files in their places; if one fails, the earlier ones go and old ones return."""
    done: list[tuple[Path, Path]] = []
    try:
        for path, temporary, old in staged:
            done.append((path, old))
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
    except BaseException as error:
        for (path, old), (_, temporary, _) in zip(reversed(done), reversed(staged[: len(done)])):
            if old.exists():
                os.replace(old, path)
            elif not temporary.exists():
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FileFormatError(_sentence(done[-1][0], error.strerror)) from error
        raise


def _sentence(path: Path, reason: str | None) -> str:
    return (
        f"'{path}' could not be written ({reason or 'unknown reason'}), so no result was kept; "
        "check the folder, its permissions and the free space."
    )
