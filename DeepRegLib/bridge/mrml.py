"""MRML nodes <-> numpy arrays and `Grid`; the names that the panel, the console and tests use.

The scene and its nodes are arguments everywhere; there is no global scene. Nothing here imports
torch: `add_transform` takes the library's `Transform` where a caller has one, and `add_warp` the
same as plain arrays.
"""

from __future__ import annotations

from .cards import add_quality_table, attach_card, card_of
from .companions import carry_along, check_companions
from .frames import (
    Start,
    grid_in,
    initial_transform,
    matrix_between,
    points_between,
    transform_between,
)
from .predict import Prediction, TransformSize, predict, transform_size_mb
from .preflight import Finding, check
from .resample import resampled_array
from .scene import add_node, new_scene, open_scene, place_beside, save_scene, scene_transaction
from .segments import (
    add_points,
    markup_points,
    segment_names,
    segmentation_labels,
    segmentation_mask,
)
from .splines import add_spline_transform
from .transforms import (
    add_grid_transform,
    add_linear_transform,
    add_transform,
    add_warp,
    apply_transform,
    displacement_of,
)
from .volume_cache import Statistics, VolumeCache
from .volumes import (
    add_moved_volume,
    add_volume,
    grid_of,
    is_label_map,
    volume_array,
    volume_channels,
)

__all__ = [
    "Finding",
    "Prediction",
    "Start",
    "Statistics",
    "TransformSize",
    "VolumeCache",
    "add_grid_transform",
    "add_linear_transform",
    "add_moved_volume",
    "add_node",
    "add_points",
    "add_quality_table",
    "add_spline_transform",
    "add_transform",
    "add_volume",
    "add_warp",
    "apply_transform",
    "attach_card",
    "card_of",
    "carry_along",
    "check",
    "check_companions",
    "displacement_of",
    "grid_in",
    "grid_of",
    "initial_transform",
    "is_label_map",
    "markup_points",
    "matrix_between",
    "new_scene",
    "open_scene",
    "place_beside",
    "points_between",
    "predict",
    "resampled_array",
    "save_scene",
    "scene_transaction",
    "segment_names",
    "segmentation_labels",
    "segmentation_mask",
    "transform_between",
    "transform_size_mb",
    "volume_array",
    "volume_channels",
]
