"""Runs several algorithms one after the other, each from the result of the one before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import registry
from ..errors import ParameterError
from ..spec import Value
from .base import ImagePair, Progress, Result

#: Share of a run that its stages take; inverse, moved image and quality card take the rest.
STAGES_SHARE = 0.85
#: How long a stage takes compared with the others, by kind of transform, for the progress bar.
_WEIGHTS = {"linear": 1.0, "bspline": 4.0, "dense": 6.0}


def parse_stages(algorithm: str) -> tuple[str, ...]:
    """Splits ``rigid+affine+greedy`` into keys; a deformable name alone gets its linear stages.

    A plus in front, ``+greedy``, leaves it alone.

    Raises:
        ParameterError: If the text is empty or names an unknown algorithm.
    """
    text = algorithm.strip()
    alone = text.startswith("+")
    keys = [key.strip() for key in text.removeprefix("+").split("+")]
    if not all(keys):
        raise ParameterError(
            f"'{algorithm}' is not an algorithm; join names with '+', such as rigid+affine+greedy."
        )
    specs = [registry.spec(key) for key in keys]
    for spec in specs:
        if spec.transform == "none":
            raise ParameterError(
                f"'{spec.key}' registers nothing; it judges registrations (command 'check')."
            )
    return (*specs[0].stages, *keys) if len(keys) == 1 and not alone else tuple(keys)


def stage_values(
    keys: Sequence[str], preset: str = "balanced", settings: Mapping[str, object] | None = None
) -> list[dict[str, Value]]:
    """Returns complete parameter values for each stage.

    Args:
        keys: Algorithm keys, in order.
        preset: Preset for all stages.
        settings: Values by parameter name (for every stage that has it) or ``key.name`` (for one).

    Raises:
        ParameterError: If a value does not fit, or no stage has such a parameter.
    """
    specs = [registry.spec(key) for key in keys]
    overrides: list[dict[str, object]] = [{} for _ in specs]
    for name, value in (settings or {}).items():
        key, _, short = name.rpartition(".")
        takers = [
            position
            for position, spec in enumerate(specs)
            if (not key or spec.key == key) and any(p.name == short for p in spec.parameters)
        ]
        if not takers:
            known = sorted({p.name for spec in specs for p in spec.parameters})
            raise ParameterError(
                f"No stage of {'+'.join(keys)} has a parameter '{name}'; there are: "
                f"{', '.join(known)}."
            )
        for position in takers:
            overrides[position][short] = value
    return [spec.values(preset, **values) for spec, values in zip(specs, overrides)]


def run_stages(
    pair: ImagePair,
    keys: Sequence[str],
    values: Sequence[Mapping[str, Value]],
    progress: Progress,
) -> Result:
    """Runs the stages and returns the last transform with the history of all.

    The provenance holds what stages say of themselves, such as their model, by stage name.

    Args:
        pair: The images; `pair.initial` is where the first stage starts.
        keys: Algorithm keys, in order.
        values: Complete parameter values of each stage.
        progress: Gets events; its cancellation raises `Cancelled`.
    """
    weights = [_WEIGHTS[registry.spec(key).transform] for key in keys]
    done, history, seconds, extras = 0.0, [], {}, {}
    provenance: dict[str, Any] = {}
    result = None
    for position, (key, setting, weight) in enumerate(zip(keys, values, weights)):
        whole = sum(weights) / STAGES_SHARE
        progress.stage(key, done / whole, (done + weight) / whole)
        started = time.perf_counter()
        result = registry.create(key, **setting).register(pair, progress)
        name = key if key not in seconds else f"{key} ({position + 1})"
        seconds[name] = time.perf_counter() - started
        history += [{"stage": name, **entry} for entry in result.history]
        extras.update(result.extras)
        if result.provenance:
            provenance[name] = result.provenance
        pair = replace(pair, initial=result.transform, initial_is_given=False)
        done += weight
        if progress.stop_requested:
            break
    if result is None:
        raise ParameterError("A registration needs at least one stage.")
    return Result(
        result.transform, history=history, seconds=seconds, extras=extras, provenance=provenance
    )
