"""An artificial agent for rigid registration: turns and shifts step by step, as a person would.

The agent sees the fixed image and the moving image as it lies so far, values twelve actions (a step
of 1 mm along, or 1 degree about, each axis and back) and takes the best, again and again. In
training the truth is known, so the values are computed in closed form along the greedy path to it
and learned by regression (deep supervised learning), without exploration. States are drawn on such
paths, densely near the truth, from one person shown twice and from different people, whose poses
vary together.

Two agents work one after the other. The coarse one sees the whole object at `coarse` times the
voxel size. The slope of its decision by the intensities tells where its attention lies: the fine
one sees cubes there at full resolution, and at each step the one of them that is surest of its
action acts, about its own middle. An agent stops when it comes back to a transform that it had
before (most often after two steps there and back), and the mean of the transforms of that cycle is
taken; or when no action promises anything; or after too many steps.

All actions and transforms of a run come along as `trajectory` in the provenance, so that it can be
played: the transforms as 4 x 4 matrices from fixed to moving RAS mm.

Differences from the publication: no reward is added for arriving; `discount` is small, which
changes no decision but leaves a larger part of the values to what tells the actions apart; the
value of the further path takes the six parameters as if they added up; cycles of more than two
transforms also end a run; rotations of the fine agent are about the middle of what it sees, so
that it need not know where that lies; its regions in training are drawn where the fixed image
changes most; networks also see the products of difference and slopes, have batch normalization,
fewer poolings and 64 features in place of 128. `step_mm` and
`step_deg` suit objects of other sizes than people. Fitted to a pair without a model (or with
`pair_steps`), the agents learn from each image with itself, as the truth of the pair is not known.

Shifts are learned within seconds, turns within thousands of steps (a strict xfail of the tests,
whose training takes seconds, says so). docs/acceptance.md tells what was reached on mouse skulls.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry.affine import about_point
from ..networks.agent_net import AgentNetwork
from ..networks.blocks import channels_last
from ..registration.agent import Steps, action_values, states_on_paths
from ..registration.agent_run import AgentRun, middle
from ..registration.attention import blurred, look, rich_centers, view_points
from ..registration.base import ImagePair, Progress, Result
from ..registration.rigid_learned import RigidLearned, object_center_ras
from ..registration.rigid_motion import known_pairs, motion_matrix
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction, Stage
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference
from ..training.dealigned import KnownAlignment

SPEC = AlgorithmSpec(
    key="rl_rigid",
    title="Agent: rigid registration by learned actions",
    family="reinforcement learning",
    summary="Turns and shifts step by step; a trained agent chooses each step, coarse, then fine.",
    transform="linear",
    modalities=("same", "different"),
    needs=Needs(training=True),
    outputs=Outputs(trajectory=True),
    references=(
        Reference(
            authors="Liao, Miao, de Tournemire, Grbic, Kamen, Mansi, Comaniciu",
            title="An artificial agent for robust image registration",
            venue="Proceedings of the AAAI Conference on Artificial Intelligence 31(1)",
            year=2017,
            doi="10.1609/aaai.v31i1.11230",
        ),
    ),
    parameters=(
        Parameter(
            name="model",
            default="",
            help="Trained model, by name or file; empty takes the newest.",
        ),
        Parameter(
            name="pair_steps",
            default=0,
            minimum=0,
            maximum=10000,
            help="Steps that the weights are fitted to the single images before they are used.",
        ),
        Parameter(
            name="last_stage",
            default="fine",
            choices=("coarse", "fine"),
            help="Agent that a registration ends with.",
        ),
        Parameter(
            name="coarse_steps",
            default=200,
            minimum=0,
            maximum=10000,
            help="Most actions of the coarse agent.",
            advanced=True,
        ),
        Parameter(
            name="fine_steps",
            default=60,
            minimum=0,
            maximum=10000,
            help="Most actions of the fine agent.",
            advanced=True,
        ),
        Parameter(
            name="regions",
            default=3,
            minimum=1,
            maximum=64,
            help="Regions of attention that the fine agent sees.",
            advanced=True,
        ),
        Parameter(
            name="step_mm",
            default=1.0,
            minimum=0.001,
            maximum=100.0,
            unit="mm",
            help="Shift by one action.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="step_deg",
            default=1.0,
            minimum=0.01,
            maximum=30.0,
            unit="degree",
            help="Rotation by one action.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="reach_mm",
            default=30.0,
            minimum=0.0,
            maximum=500.0,
            unit="mm",
            help="Largest shift along each axis that the coarse agent learns to undo.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="reach_deg",
            default=30.0,
            minimum=0.0,
            maximum=90.0,
            unit="degree",
            help="Largest rotation about each axis that the coarse agent learns to undo.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="fine_reach",
            default=6.0,
            minimum=1.0,
            maximum=100.0,
            help="Steps of each kind that the fine agent learns to undo.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="discount",
            default=0.2,
            minimum=0.0,
            maximum=0.999,
            help="Weight of the reward after the next one.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="size",
            default=32,
            minimum=16,
            maximum=128,
            unit="voxel",
            help="Width of what an agent sees; a multiple of 8.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="coarse",
            default=2.0,
            minimum=1.0,
            maximum=16.0,
            help="Voxel size of what the coarse agent sees, in voxels of the model.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="states",
            default=8,
            minimum=1,
            maximum=256,
            help="States of each pair in a step of the training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="own_share",
            default=0.5,
            minimum=0.0,
            maximum=1.0,
            help="Share of the training pairs that show one person twice.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(8, 32, 32, 64, 64),
            minimum=1,
            maximum=1024,
            help="Features of the five convolutions.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="hidden",
            default=(512, 512, 64),
            minimum=1,
            maximum=4096,
            help="Features of the dense layers.",
            advanced=True,
            training=True,
        ),
    ),
)

_STAGES = ("coarse", "fine")
#: Motions that an agent learns to undo reach 1.73 times as far in a corner as along an axis.
_LEASH = 2.0
#: Surroundings that tell how rich in detail a place is, as a share of that width.
_AROUND = 0.125


class Algorithm(RigidLearned):
    """Rigid registration by a coarse and a fine agent."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.steps = Steps(float(values["step_mm"]), float(values["step_deg"]))
        self._size, self._ratio = int(values["size"]), float(values["coarse"])

    def stages(self) -> tuple[Stage, ...]:
        """Returns the two stages; each trains its own agent alone."""
        return tuple(Stage(name, 0.5, (name,)) for name in _STAGES)

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        channels, hidden = (
            tuple(int(n) for n in self.values[name]) for name in ("channels", "hidden")
        )
        agents = {name: AgentNetwork(self._size, channels, hidden) for name in _STAGES}
        return channels_last(nn.ModuleDict(agents))

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns the pairs with their alignment known; see `training.dealigned`."""
        reach = (0.5 * float(self.values["reach_mm"]), 0.5 * float(self.values["reach_deg"]))
        return KnownAlignment(pairs, reach, float(self.values["own_share"]))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the squared errors of the values; of the agent that learns, or of both."""
        known = known_pairs(batch)
        names = (batch.stage,) if batch.stage in _STAGES else _STAGES
        return {
            f"{name} values": self._regression(network, name, *known, batch.spacing_mm)
            for name in names
        }

    def _regression(
        self, network: nn.Module, name: str, fixed: Tensor, moving: Tensor, alignment: Tensor,
        spacing_mm: float,
    ) -> Tensor:  # fmt: skip
        """Squared error of an agent's values in states that are drawn, summed over actions."""
        several, device = int(self.values["states"]), fixed.device
        count = several * len(fixed)
        if name == "coarse":
            center, step = middle(fixed).to(device), self._ratio
            reach = (float(self.values["reach_mm"]), float(self.values["reach_deg"]))
            fixed, moving = blurred(fixed, step), blurred(moving, step)
        else:
            center, step = rich_centers(fixed, _AROUND * self._size, several), 1.0
            most = float(self.values["fine_reach"])
            reach = (most * self.steps.mm, most * self.steps.deg)
        fixed, moving, alignment = (
            t.repeat_interleave(several, dim=0) for t in (fixed, moving, alignment)
        )
        left = motion_matrix(states_on_paths(count, reach, self.steps, device), spacing_mm, center)
        points = view_points(self._size, step, center)
        seen = look(fixed, points.expand(count, -1, -1, -1, -1))
        moved = look(moving, points, alignment @ torch.linalg.inv(left))
        found = network.get_submodule(name)(seen, moved)
        truth = action_values(left, self.steps, float(self.values["discount"]), spacing_mm, center)
        return (found - truth.to(found)).square().sum(dim=1).mean()

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see `registration.trainable.Trainable`."""
        return self.act(network, fixed, moving, spacing_mm)

    def act(
        self,
        network: nn.Module,
        fixed: Tensor,
        moving: Tensor,
        spacing_mm: float,
        start: Tensor | None = None,
    ) -> Prediction:
        """Lets the agents register a pair.

        Args:
            network: Both agents.
            fixed: (1, 1, *shape).
            moving: (1, 1, *shape).
            spacing_mm: Voxel size.
            start: Map to start from, (4, 4) in voxels; identity if omitted.

        Returns:
            The map, and the trajectory in its values.
        """
        run = AgentRun(network, fixed, moving, spacing_mm, self.steps, self._size, self._ratio,
                       self._leashes())  # fmt: skip
        found = torch.eye(4, dtype=torch.float64) if start is None else start.double().cpu()
        found = run.coarse(found, int(self.values["coarse_steps"]))
        if self.values["last_stage"] == "fine":
            most, count = int(self.values["fine_steps"]), int(self.values["regions"])
            found = run.fine(found, most, count)
        return Prediction(linear=found, values={"trajectory": run.trajectory()})

    def _leashes(self) -> dict[str, tuple[float, float]]:
        """Shift in mm and rotation in degrees that no agent has a reason to go beyond."""
        mm, deg = float(self.values["reach_mm"]), float(self.values["reach_deg"])
        fine = _LEASH * float(self.values["fine_reach"])
        # A turn about a region far from the middle shifts the middle, too.
        lever = math.sin(math.radians(min(fine * self.steps.deg, 90.0))) * self._size
        return {
            "coarse": (_LEASH * mm, _LEASH * deg),
            "fine": (fine * self.steps.mm + lever, fine * self.steps.deg),
        }

    def finished(self, result: Result, pair: ImagePair) -> Result:
        """Returns a result with the transforms of its trajectory in RAS mm, with the start."""
        values = result.provenance.get("values")
        if not values:
            return result
        trajectory, start = dict(values["trajectory"]), pair.initial
        center = object_center_ras(pair)
        before = np.eye(4) if start is None else start.linear
        relative = [np.array(m) for m in trajectory.pop("transforms_about_center")]
        trajectory["transforms_ras"] = [
            (before @ about_point(m[:3, :3], center, center + m[:3, 3])).round(6).tolist()
            for m in relative
        ]
        result.provenance = {
            **result.provenance, "values": {**values, "trajectory": trajectory}
        }  # fmt: skip
        return result
