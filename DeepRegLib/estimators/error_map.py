"""Error map: a network estimates at every voxel how far a registration is off, in mm.

It looks at the fixed and the moved image alone, so it judges the result of any method, and
transforms that came from elsewhere. It is trained on images that are aligned, but for a smooth
random displacement whose length is known at every voxel, clipped to a range; the squared difference
is minimized over random patches.

Differences from the publication: convolutions without padding and a last stage of convolutions, so
that a volume is judged at once (the same numbers as patch by patch); patches of 22 voxels decide
where there were 33 at 1 mm, because voxels of 3 mm see as far with them (`window` 5 gives 34); in
training a patch is larger than that and is judged at several places; beside the images the network
is shown where they push each other (the forces of the demons); besides images that are warped, also
pairs of two people that were registered beforehand, and a change of intensities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, ParameterError
from ..geometry.field import vector_lengths
from ..networks.blocks import channels_last, pair_input
from ..networks.error_net import STEPS, ErrorNetwork
from ..registration.base import ImagePair, Progress, Result
from ..registration.learned import LearnedRegistration
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction, Stage
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference
from ..training.agreement import agreement
from ..training.residual_pairs import Residual, ResidualPairs, registered_people

SPEC = AlgorithmSpec(
    key="error_map",
    title="Error map",
    family="error estimation",
    summary="Estimates at every voxel how far a registration is off, whatever made it.",
    transform="none",
    needs=Needs(training=True),
    outputs=Outputs(inverse=False, error_map=True),
    references=(
        Reference(
            authors="Eppenhof, Pluim",
            title="Error estimation of deformable image registration of pulmonary CT scans using "
            "convolutional neural networks",
            venue="Journal of Medical Imaging 5(2):024003",
            year=2018,
            doi="10.1117/1.JMI.5.2.024003",
        ),
        Reference(
            authors="Eppenhof, Pluim",
            title="Supervised local error estimation for nonlinear image registration using "
            "convolutional neural networks",
            venue="SPIE Medical Imaging, Proceedings 10133",
            year=2017,
            doi="10.1117/12.2253859",
        ),
    ),
    parameters=(
        Parameter(
            name="model",
            default="",
            help="Trained model, by name or file; empty takes the newest.",
        ),
        Parameter(
            name="step",
            default=2,
            minimum=1,
            maximum=4,
            unit="voxel",
            presets={"fast": 4, "accurate": 1},
            help="Distance of the places that are judged, 1, 2 or 4; others are interpolated.",
        ),
        Parameter(
            name="largest_mm",
            default=6.0,
            minimum=0.1,
            maximum=1000.0,
            unit="mm",
            help="Larger errors count as this large.",
            training=True,
        ),
        Parameter(
            name="size_mm",
            default=2.0,
            minimum=0.0,
            maximum=100.0,
            unit="mm",
            help="Largest standard deviation of the errors in training, at each of their widths.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="widths_mm",
            default=(12.0, 24.0, 48.0, 96.0),
            minimum=0.1,
            maximum=1000.0,
            unit="mm",
            help="Distances over which the errors in training change.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="registered_pairs",
            default=24,
            minimum=0,
            maximum=10000,
            help="Pairs of two people that are registered before the training; 0 for none.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="registered",
            default=0.15,
            minimum=0.0,
            maximum=1.0,
            help="How often such a pair is shown.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="engine",
            default="svf",
            help="Algorithm that registers them.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="patch",
            default=42,
            minimum=20,
            maximum=256,
            unit="voxel",
            help="Edge of the patches in training; several places of each are judged.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="mixed",
            default=8,
            minimum=1,
            maximum=1000,
            help="Pairs that are mixed in a step of the training, times those of a batch.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="patches",
            default=1,
            minimum=1,
            maximum=1000,
            help="Patches of each of them.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(32, 64),
            minimum=1,
            maximum=1024,
            help="Features of the two groups of convolutions.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="hidden",
            default=(512, 128),
            minimum=1,
            maximum=4096,
            help="Features of the two hidden layers.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="window",
            default=2,
            minimum=1,
            maximum=16,
            help="Width of the first of them, in features of four voxels: 1, 2 and 5 look at 18, "
            "22 and 34 voxels.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Above this, an image shows something.
_SHOWN = 0.05
#: Stage of a training in which the statistics of batch normalization stay as they are.
_SETTLED = "settled"
#: Share of the largest error that an untrained network says.
_FIRST = 0.3
#: Distance in voxels of the places of a patch that are judged in training.
_TAUGHT = 2


class Algorithm(LearnedRegistration):
    """Estimation of the error of a registration."""

    multiple = 1
    in_tiles = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if values["step"] not in STEPS:
            raise ParameterError(f"Parameter 'step' takes 1, 2 or 4, not {values['step']}.")
        #: Voxels that decide about one place, along each axis.
        self._field = 4 * int(values["window"]) + 14
        # Batch normalization needs several places, even of a single patch.
        needed = self._field + _TAUGHT
        if values["patch"] < needed:
            raise ParameterError(
                f"Parameter 'patch' takes {needed} voxels or more where 'window' is "
                f"{values['window']}, not {values['patch']}."
            )

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Refuses: an error map judges a registration and makes none.

        Raises:
            ParameterError: Always.
        """
        raise ParameterError(
            "'error_map' judges a registration and makes none; register with another algorithm, "
            "then use 'python -m DeepRegLib check'."
        )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        v = self.values
        start = _FIRST * float(v["largest_mm"])
        network = ErrorNetwork(tuple(v["channels"]), tuple(v["hidden"]), int(v["window"]), start)
        return channels_last(network)

    def stages(self) -> tuple[Stage, ...]:
        """Returns two stages: in the last one, the statistics of batch normalization stay.

        The network is then trained as it is used, when whole volumes are judged.
        """
        return Stage("patches", 0.6), Stage(_SETTLED, 0.4, rate=0.3)

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs that are registered, but for a known displacement."""
        v = self.values
        residual = Residual(
            float(v["size_mm"]), tuple(v["widths_mm"]), registered=float(v["registered"])
        )
        people = None
        if residual.registered > 0.0:
            count, engine = int(v["registered_pairs"]), str(v["engine"])
            people = registered_people(pairs, count, engine, folder, progress)
        return ResidualPairs(pairs, residual, people, int(v["mixed"]))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the squared difference from the known error, mm², over random patches."""
        if batch.truth is None:
            raise InputError("An error map learns from pairs whose error is known everywhere.")
        pair = pair_input(batch.fixed, batch.moving)
        shown = (pair > _SHOWN).any(dim=1, keepdim=True).float()
        whole = torch.cat([pair, self.error_mm(batch) * shown, shown], dim=1)
        patches = self._patches(whole)
        said = network(patches[:, :2], _TAUGHT, settled=batch.stage == _SETTLED)
        # The middle of a patch lies between eight voxels; those that show something count.
        first = self._field // 2 - 1
        where = [slice(first, first + _TAUGHT * (n - 1) + 1, _TAUGHT) for n in said.shape[2:]]
        known = F.avg_pool3d(patches[:, 2:], 2, stride=1)[:, :, where[0], where[1], where[2]]
        share = known[:, 1:]
        error, weight = known[:, :1] / share.clamp(min=0.1), (share > 0.0).float()
        square = (said - error).square() * weight
        return {"error": square.sum() / weight.sum().clamp(min=1.0)}

    def error_mm(self, batch: Batch) -> Tensor:
        """Returns the length of the missing displacement, up to the largest, (B, 1, *shape)."""
        assert batch.truth is not None
        length = vector_lengths(batch.truth) * batch.spacing_mm
        return length.clamp(max=float(self.values["largest_mm"]))

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Estimates the error of one pair; `moving` is the moved image."""
        assert isinstance(network, ErrorNetwork)
        said = network.everywhere(pair_input(fixed, moving), int(self.values["step"]))
        error = said.clamp(0.0, float(self.values["largest_mm"]))
        shown = fixed > _SHOWN
        mean = float(error[shown].mean()) if bool(shown.any()) else 0.0
        return Prediction(maps={"error_mm": error}, values={"error_mean_mm": mean})

    def examine(self, network: nn.Module, pair: Batch) -> dict[str, float]:
        """Returns how well errors are estimated where the fixed image shows something.

        See `training.agreement`; empty if the error is not known.
        """
        if pair.truth is None:
            return {}
        shown = pair.fixed > _SHOWN
        said = self.predict(network, pair.fixed, pair.moving, pair.spacing_mm).maps["error_mm"]
        return agreement(said[shown], self.error_mm(pair)[shown])

    def _patches(self, whole: Tensor) -> Tensor:
        """Draws patches around voxels that show something, by torch's global generator.

        Args:
            whole: Images, error where something is shown, and where that is, (B, 4, *shape).

        Returns:
            (B x patches, 4, patch, patch, patch).
        """
        size, count = int(self.values["patch"]), int(self.values["patches"])
        # Beyond the images there is nothing, as in `ErrorNetwork.everywhere`, so that what lies at
        # their edges is judged in training, too.
        rim = self._field // 2
        lacking = [rim + max(0, -(-(size - n) // 2) - rim) for n in whole.shape[2:]]
        whole = F.pad(whole, [side for n in reversed(lacking) for side in (n, n)])
        shape = whole.shape[2:]
        drawn = []
        for one in whole:
            places = one[3].nonzero()
            if len(places) == 0:
                places = torch.tensor([[n // 2 for n in shape]], device=whole.device)
            chosen = torch.randint(len(places), (count,))
            for center in places[chosen.to(places.device)].tolist():
                a, b, c = (
                    min(max(place - size // 2, 0), n - size) for place, n in zip(center, shape)
                )
                drawn.append(one[:, a : a + size, b : b + size, c : c + size])
        return torch.stack(drawn)
