"""Many pairs: a table of files in; for each pair a folder with its results, and one table of all.

Several pairs may be registered at once, each in a process of its own. On a GPU they share it, so
that the small levels of one pair fill the gaps that those of another leave; on the CPU they share
the cores, which coarse levels alone cannot keep busy.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .allocator import keep_freed_memory
from .errors import DeepRegError, FileFormatError, InputError, ParameterError
from .io.files import PathLike

#: Columns of a table that hold files; the first two are needed.
INPUTS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels",
          "fixed_landmarks", "moving_landmarks", "initial_transform")  # fmt: skip
#: Figures of the quality card that the summary shows.
FIGURES = ("ncc_before", "ncc_after", "nmi_before", "nmi_after", "dice_before", "dice_after",
           "tre_mean_before_mm", "tre_mean_after_mm", "folds_percent", "sdlogj",
           "deformation_max_mm", "inverse_mean_mm", "seconds", "peak_memory_mb")  # fmt: skip
SUMMARY = "summary.csv"
_REPORT, _INPUTS = "report.json", "inputs.json"
_NAME = re.compile(r"[^\w.-]+")

#: A row of the summary: name, verdict, sentence, the figures, and what went wrong.
Row = dict[str, Any]


@dataclass(frozen=True)
class PairFiles:
    """A pair of the table.

    Args:
        name: Names its folder.
        inputs: Files by argument name of `DeepRegLib.register`.
    """

    name: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class BatchSettings:
    """How all pairs are registered, and what is kept; see `DeepRegLib.register`.

    Args:
        algorithm: Keys joined by ``+``.
        preset: ``fast``, ``balanced`` or ``accurate``.
        settings: Parameter values by name.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        image: Suffix of the moved images; none are written if empty.
        transform: Suffix of the transforms; none are written if empty.
        inverse: Whether the inverse is written as well.
        threads: Processor threads of each process; the cores are shared out if 0.
    """

    algorithm: str = "greedy"
    preset: str = "balanced"
    settings: Mapping[str, object] = field(default_factory=dict)
    device: str = "auto"
    image: str = ".nii.gz"
    transform: str = ".h5"
    inverse: bool = False
    threads: int = 0


def read_pairs(table: PathLike) -> list[PairFiles]:
    """Reads the pairs of a CSV table, whose columns are those of `INPUTS` and ``name``.

    Paths are relative to the table. A pair without a name is called after its files.

    Raises:
        FileFormatError: If it is no such table.
        InputError: If a file is missing, or two pairs have one name.
    """
    path = Path(table)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"'{path}' is not a CSV table that can be read.") from error
    head = (text.splitlines() or [""])[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count))
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    odd = [name for name in columns if name not in (*INPUTS, "name")]
    if odd or not {"fixed", "moving"} <= set(columns):
        raise FileFormatError(
            f"The first line of '{path.name}' must name the columns fixed and moving, and as "
            f"needed name, {', '.join(INPUTS[2:])}"
            + (f"; '{odd[0]}' is none of them." if odd else ".")
        )
    reader.fieldnames = columns
    pairs = [_pair(row, path.parent, number) for number, row in enumerate(reader, start=2)]
    if not pairs:
        raise InputError(f"'{path.name}' has no pairs below its first line.")
    names = [pair.name.lower() for pair in pairs]
    twice = next((pair.name for pair in pairs if names.count(pair.name.lower()) > 1), None)
    if twice is not None:
        raise InputError(f"Two pairs are called '{twice}'; give each a name in a column 'name'.")
    return pairs


def _pair(row: Mapping[str, Any], folder: Path, line: int) -> PairFiles:
    given = {name: str(row.get(name) or "").strip() for name in (*INPUTS, "name")}
    inputs = {name: str(folder / given[name]) for name in INPUTS if given[name]}
    for name in INPUTS[:2]:
        if name not in inputs:
            raise InputError(f"Line {line} of the table names no {name} image.")
    for name, file in inputs.items():
        if not Path(file).exists():
            raise InputError(f"Line {line} of the table: there is no '{file}' ({name}).")
    stems = [Path(inputs[name]).name.split(".")[0] for name in ("moving", "fixed")]
    name = given["name"] or "_to_".join(stems)
    return PairFiles(_NAME.sub("_", name).strip(".") or f"pair_{line}", inputs)


def register_many(
    pairs: Sequence[PairFiles],
    folder: PathLike,
    settings: BatchSettings | None = None,
    *,
    together: int = 1,
    again: bool = False,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Registers many pairs; one that fails does not keep the others from being done.

    Every pair gets a folder with ``moved``, ``transform``, perhaps ``inverse``, and
    ``report.json``; ``summary.csv`` has a row for each. What is there already, from the same files
    with the same settings, is taken over. A script calls this below ``if __name__ == "__main__":``,
    because each process reads the script first.

    Args:
        pairs: What to register.
        folder: Gets the results.
        settings: How.
        together: Pairs at once, each in a process of its own.
        again: Register also what is there already.
        report: Called with the row of each pair as it is done.

    Returns:
        The rows, in the order of the pairs; ``error`` says what went wrong, if anything did.

    Raises:
        ParameterError: If algorithm, preset or a setting does not fit.
        FileFormatError: If the folder cannot be written to.
    """
    from .registration.compose import parse_stages, stage_values

    settings = settings or BatchSettings()
    if together < 1:
        raise ParameterError(f"The number of pairs at once begins at 1, not {together}.")
    stage_values(parse_stages(settings.algorithm), settings.preset, dict(settings.settings))
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(f"'{folder}' cannot be made ({error.strerror}).") from error
    rows: dict[str, Row] = {}
    tasks = []
    for pair in pairs:
        kept = None if again else _kept(pair, folder, settings)
        if kept is None:
            tasks.append((pair, folder, settings))
        else:
            rows[pair.name] = kept
    threads = settings.threads or max(1, (os.cpu_count() or 1) // together)
    for task, row in run_tasks(tasks, _register, together, threads):
        pair = task[0]
        rows[pair.name] = row if isinstance(row, dict) else {"name": pair.name, "error": row}
        _write_summary(folder, [rows[p.name] for p in pairs if p.name in rows])
        if report is not None:
            report(rows[pair.name])
    _write_summary(folder, [rows[pair.name] for pair in pairs])
    return [rows[pair.name] for pair in pairs]


def run_tasks(
    tasks: Sequence[Any], work: Callable[[Any], Any], together: int, threads: int
) -> Iterator[tuple[Any, Any]]:
    """Yields tasks with what `work` returns of them, as they are done.

    A process that ends (for lack of memory, say) takes those beside it along: these tasks yield a
    sentence, and the others go on in new processes.

    Args:
        tasks: What to do; can be pickled.
        work: A function of a module.
        together: Processes.
        threads: Threads of each.
    """
    waiting = deque(tasks)
    while waiting:
        running: dict[Future[Any], Any] = {}
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(together, context, initializer=_begin, initargs=(threads,))
        try:
            while waiting or running:
                while waiting and len(running) < together:
                    task = waiting.popleft()
                    running[pool.submit(work, task)] = task
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            for task in running.values():
                yield task, ("The process ended unexpectedly, perhaps for lack of memory; try "
                             "fewer pairs at once.")  # fmt: skip
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    import torch

    keep_freed_memory()
    torch.set_num_threads(threads)


def _register(task: tuple[PairFiles, Path, BatchSettings]) -> Row | str:
    """Registers a pair and writes its results; returns its row, or what went wrong."""
    pair, folder, settings = task
    try:
        return _registered(pair, folder / pair.name, settings)
    except DeepRegError as error:
        return " ".join(str(error).split())
    except Exception as error:
        return f"It failed unexpectedly ({type(error).__name__}: {' '.join(str(error).split())})."


def _registered(pair: PairFiles, folder: Path, settings: BatchSettings) -> Row:
    from .api import register

    words: dict[str, Any] = {
        **pair.inputs, "algorithm": settings.algorithm, "preset": settings.preset,
        "device": settings.device, **settings.settings,
    }  # fmt: skip
    done = register(**words)
    folder.mkdir(exist_ok=True)
    # Until the new report stands there, nothing is complete.
    (folder / _INPUTS).unlink(missing_ok=True)
    done.save(
        output_image=folder / f"moved{settings.image}" if settings.image else None,
        output_transform=folder / f"transform{settings.transform}" if settings.transform else None,
        output_inverse=folder / f"inverse{settings.transform}" if settings.inverse else None,
        report=folder / _REPORT,
    )
    text = json.dumps(_identity(pair, settings), indent=1) + "\n"
    (folder / _INPUTS).write_text(text, encoding="utf-8")
    return _row(pair.name, done.quality)


def _identity(pair: PairFiles, settings: BatchSettings) -> dict[str, Any]:
    """Returns what the results of a pair depend on: files with size and time, and settings."""
    files = {}
    for name, file in pair.inputs.items():
        found = Path(file).stat()
        files[name] = [str(Path(file).resolve()), found.st_size, found.st_mtime_ns]
    values = {name: str(value) for name, value in settings.settings.items()}
    return {
        "files": files, "algorithm": settings.algorithm, "preset": settings.preset,
        "settings": values, "device": settings.device, "image": settings.image,
        "transform": settings.transform, "inverse": settings.inverse,
    }  # fmt: skip


def _kept(pair: PairFiles, folder: Path, settings: BatchSettings) -> Row | None:
    """Returns the row of a pair that was registered before in the same way; else None."""
    own = folder / pair.name
    try:
        known = json.loads((own / _INPUTS).read_text(encoding="utf-8"))
        quality = json.loads((own / _REPORT).read_text(encoding="utf-8"))["quality"]
    except (OSError, ValueError, KeyError):
        return None
    return _row(pair.name, quality) if known == _identity(pair, settings) else None


def _row(name: str, quality: Mapping[str, Any]) -> Row:
    figures = {key: quality.get(key) for key in FIGURES}
    return {"name": name, "verdict": quality.get("verdict"), "sentence": quality.get("sentence"),
            **figures, "error": ""}  # fmt: skip


def _write_summary(folder: Path, rows: Sequence[Row]) -> None:
    columns = ("name", "verdict", "sentence", *FIGURES, "error")
    temporary = folder / f".{SUMMARY}"
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(folder / SUMMARY)
    except OSError as error:
        raise FileFormatError(
            f"'{folder / SUMMARY}' could not be written ({error.strerror}); close it elsewhere, "
            "and look at permissions and space."
        ) from error
