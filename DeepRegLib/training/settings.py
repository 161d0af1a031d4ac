"""How a training runs, as one checked description. Standard library only, for panels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..errors import ParameterError
from ..spec import Parameter

SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("muon", "adam")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the training loop; `PARAMETERS` describes each for people.

    Values of the wrong type or range are refused with a sentence (`ParameterError`); texts, as the
    command line gives them, are converted.
    """

    steps: int = 1000
    batch: int = 1
    optimizer: str = "muon"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 20
    accumulate: int = 1
    clip_norm: float = 10.0
    precision: str = "float32"
    validate_every: int = 100
    patience: int = 0
    checkpoint_every_s: float = 120.0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for parameter in PARAMETERS:
            value = parameter.parse(getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, value)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> TrainingSettings:
        """Returns settings from values by name.

        Raises:
            ParameterError: If a name is unknown, or a value does not fit.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ParameterError(
                    f"There is no setting '{name}' of a training; there are: {', '.join(known)}."
                )
        return cls(**values)  # type: ignore[arg-type]


_D = TrainingSettings
PARAMETERS: tuple[Parameter, ...] = (
    Parameter("steps", _D.steps, "Steps of the optimizer, all stages together.",
              minimum=1, maximum=10_000_000),
    Parameter("batch", _D.batch, "Pairs that are computed at once.", minimum=1, maximum=4096),
    Parameter("optimizer", _D.optimizer, "Muon for the hidden layers and Adam for the rest, or "
              "Adam alone, which needs several times as many steps.", choices=OPTIMIZERS),
    Parameter("learning_rate", _D.learning_rate, "Largest step size of Adam; that of Muon follows.",
              minimum=1e-9, maximum=10.0),
    Parameter("schedule", _D.schedule, "Step size over a stage: constant, or falling to a "
              "hundredth along half a cosine.", choices=SCHEDULES),
    Parameter("warmup", _D.warmup, "Steps over which the step size grows at the beginning of a "
              "stage, at most a quarter of it.", minimum=0, maximum=1_000_000),
    Parameter("accumulate", _D.accumulate, "Batches whose gradients are averaged in one step.",
              minimum=1, maximum=4096),
    Parameter("clip_norm", _D.clip_norm, "Largest norm of the gradient, 0 for any.",
              minimum=0.0, maximum=1e9),
    Parameter("precision", _D.precision, "Type of the numbers inside the network; losses and "
              "fields stay float32.", choices=PRECISIONS),
    Parameter("validate_every", _D.validate_every, "Steps between two validations.",
              minimum=1, maximum=10_000_000),
    Parameter("patience", _D.patience, "Validations without a gain that end a stage, 0 for never.",
              minimum=0, maximum=1_000_000),
    Parameter("checkpoint_every_s", _D.checkpoint_every_s, "Time between two checkpoints.",
              unit="s", minimum=0.0, maximum=1e6),
    Parameter("seed", _D.seed, "Beginning of all random numbers.",
              minimum=0, maximum=2**31 - 1),
    Parameter("device", _D.device, "auto takes the GPU if it works; cpu, cuda or cuda:N."),
)  # fmt: skip
