"""Finds the algorithms: reads their literal `SPEC` without importing. Standard library only."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from typing import Any

from . import spec as _spec
from .errors import ParameterError
from .spec import AlgorithmSpec

ALGORITHMS_FOLDER = Path(__file__).parent / "algorithms"
#: Systems that learn but register nothing: they judge a registration.
ESTIMATORS_FOLDER = Path(__file__).parent / "estimators"
_SPEC_CLASSES = ("AlgorithmSpec", "Parameter", "Reference", "Needs", "Outputs")


@functools.cache
def specs() -> dict[str, AlgorithmSpec]:
    """Returns the specs of all algorithms by key, sorted by family and title.

    Example:
        >>> "greedy" in specs()
        True
    """
    found = _read(ALGORITHMS_FOLDER)
    order = {family: position for position, family in enumerate(_spec.FAMILIES)}
    found.sort(key=lambda s: (order[s.family], s.title))
    return {s.key: s for s in found}


@functools.cache
def estimators() -> dict[str, AlgorithmSpec]:
    """Returns the specs of the systems that register nothing, by key, sorted by title.

    They have models, parameters and a training like algorithms, but no list shows them as one.
    """
    return {s.key: s for s in sorted(_read(ESTIMATORS_FOLDER), key=lambda s: s.title)}


def spec(key: str) -> AlgorithmSpec:
    """Returns the spec of one algorithm, or of one system that judges registrations.

    Raises:
        ParameterError: If there is no such algorithm.
    """
    found = specs().get(key) or estimators().get(key)
    if found is None:
        raise ParameterError(f"There is no algorithm '{key}'; choose from: {', '.join(specs())}.")
    return found


def read_spec(file: Path) -> AlgorithmSpec:
    """Reads the literal `SPEC` of an algorithm file without running the file.

    Raises:
        ParameterError: If the file has no `SPEC`, or one that is not literal or not valid.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "SPEC" for target in node.targets
        ):
            result = _evaluate(node.value, file)
            if not isinstance(result, AlgorithmSpec):
                raise ParameterError(f"SPEC in {file.name} is not an AlgorithmSpec.")
            if result.key != file.stem or result.family not in _spec.FAMILIES:
                raise ParameterError(
                    f"SPEC in {file.name} must have the key '{file.stem}' and a known family."
                )
            return result
    raise ParameterError(f"{file.name} has no SPEC; see algorithms/_template.py.")


def create(key: str, **values: Any) -> Any:
    """Imports an algorithm and makes an instance with complete, checked parameters.

    Args:
        key: Key of the algorithm.
        **values: Parameter values, as `AlgorithmSpec.values` returns them.

    Raises:
        ParameterError: If the algorithm or a parameter is unknown, or a value does not fit.
    """
    complete = spec(key).values(**values)
    folder = ALGORITHMS_FOLDER if key in specs() else ESTIMATORS_FOLDER
    module = importlib.import_module(f"{__package__}.{folder.name}.{key}")
    return module.Algorithm(**complete)


def _read(folder: Path) -> list[AlgorithmSpec]:
    files = sorted(f for f in folder.glob("*.py") if not f.name.startswith("_"))
    return [read_spec(file) for file in files]


def _evaluate(node: ast.expr, file: Path) -> Any:
    """Evaluates literals and calls of the spec classes, nothing else."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _SPEC_CLASSES
        and all(k.arg for k in node.keywords)
    ):
        arguments = [_evaluate(a, file) for a in node.args]
        keywords = {str(k.arg): _evaluate(k.value, file) for k in node.keywords}
        return getattr(_spec, node.func.id)(*arguments, **keywords)
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(item, file) for item in node.elts)
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _evaluate(value, file)
            for key, value in zip(node.keys, node.values)
            if key is not None
        }
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ParameterError(
            f"SPEC in {file.name}, line {node.lineno}, must be written with literals only."
        ) from None
