"""Similarities that a trained network gives, for every engine; see `losses.base.Similarity`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import registry
from ..geometry.sampling import resize_image
from ..losses import LEARNED
from ..losses import similarity as plain_similarity
from ..losses.base import BoundSimilarity, Similarity, check_images, full
from ..losses.feature_distance import feature_distance
from ..models import ModelCard, find_model
from ..networks.feature_autoencoder import FeatureAutoencoder, filled_up
from ..networks.patch_metric import STRIDE, PatchMetric, bounded
from ..networks.patch_sampling import near_object
from .preprocess import otsu_threshold, quantiles, subsample

#: System whose models give a similarity, by the name of the similarity.
SYSTEMS = {"deep_metric": "deep_metric", "features": "ssemnet"}
#: An axis is resampled where its voxels differ from the wanted ones by more than this share.
_TOLERANCE = 0.2
#: Part of the foreground that is brighter than 1, as in `model_frame.normalized`.
_BRIGHTEST = 0.99


class Measuring(Protocol):
    """A system whose network compares images."""

    def measure(
        self, network: nn.Module, spacing_mm: Sequence[float], model_mm: float
    ) -> Similarity:
        """Returns the similarity for images of a voxel size; `model_mm` is that of the model."""
        ...


def similarity_for(
    name: str,
    voxel_mm: Sequence[float],
    metric_model: str = "",
    device: torch.device | str = "cpu",
    **options: Any,
) -> Similarity:
    """Makes a similarity by name, those of `losses` and those that a trained model gives.

    Args:
        name: One of `losses.SIMILARITIES`, ``deep_metric``, or ``features``.
        voxel_mm: Voxel size of the images along the tensor axes.
        metric_model: For a learned one: name or file of the model; the newest if empty. Others
            do without.
        device: Where the images are.
        **options: Of a similarity of `losses`.

    Raises:
        ParameterError: If there is no such similarity or model, or the model is of another kind.
        FileFormatError: If the model is damaged.
    """
    if name not in LEARNED:
        return plain_similarity(name, **options)
    system, network, card = load_metric(name, metric_model)
    return system.measure(network.to(device), voxel_mm, card.spacing_mm)


def load_metric(name: str, model: str = "") -> tuple[Measuring, nn.Module, ModelCard]:
    """Returns system, network and card of the model that gives a similarity.

    Raises:
        ParameterError: If there is no such model, or it is of another kind.
        FileFormatError: If the model is damaged.
    """
    key = SYSTEMS[name]
    file = find_model(key, model)
    system, network = registry.create(key).trained(file)
    assert file.card is not None  # else `trained` has complained
    return system, network.eval().requires_grad_(False), file.card


class NetworkSimilarity(Similarity):
    """What similarities by a network share: what the network sees, and the gradient by autograd.

    The network sees cubic voxels: those of the images, or those that it was trained on where the
    images are finer. Masks leave out what they leave out: there both images are black.

    Args:
        network: Compares images; its weights stay as they are.
        spacing_mm: Voxel size of the images along the tensor axes.
        model_mm: Voxel size that the network was trained on.
    """

    local = True

    def __init__(self, network: nn.Module, spacing_mm: Sequence[float], model_mm: float) -> None:
        self._network = network.eval().requires_grad_(False)
        self._spacing_mm, self._model_mm = tuple(spacing_mm), float(model_mm)

    def rescaled(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns an image as models take them: up to a quantile of the foreground."""
        values = subsample(image if mask is None else image[mask.expand(image.shape) > 0.5])
        if values.numel() == 0:
            return image
        shown = values[values > otsu_threshold(values)]
        top = quantiles(shown, [_BRIGHTEST])[0] if shown.numel() else values.max()
        return (image / top.clamp(min=1e-6)).clamp(0.0, 1.0)

    def value_and_both_gradients(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value and both gradients from one tape; see `Similarity`."""
        with torch.enable_grad():
            one, other = (x.detach().requires_grad_(True) for x in (fixed, moved))
            value = self(one, other, mask)
            slopes = torch.autograd.grad(value, (one, other))
        return value.detach(), slopes[0], slopes[1]

    def seen(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Returns what the network sees of an image (B, C, *shape): (B, 1, *seen shape)."""
        image = full(image[:, :1])
        if mask is not None:
            image = image * mask.to(image.dtype)
        return resize_image(image, self.seen_shape(image.shape[2:]))

    def seen_shape(self, shape: Sequence[int]) -> list[int]:
        """Returns the voxels that the network sees of an image of a shape."""
        spacings = [s for s, n in zip(self._spacing_mm, shape) if n > 1]
        wanted = max(self._model_mm, min(spacings, default=self._model_mm))
        return [
            n if n == 1 or abs(s / wanted - 1.0) < _TOLERANCE else max(2, round(n * s / wanted))
            for s, n in zip(self._spacing_mm, shape)
        ]


class PatchSimilarity(NetworkSimilarity):
    """The mean dissimilarity of patches around every fourth voxel of the fixed object.

    Simonovsky et al. 2016, doi:10.1007/978-3-319-46726-9_2. The numbers N of the
    patches enter as N / (1 + |N|), so that few of them do not decide alone: -1 to 1, below 0 for
    aligned images.
    """

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        assert isinstance(self._network, PatchMetric)
        one, other = self.seen(fixed, mask), self.seen(moved, mask)
        scores = bounded(self._network.everywhere(one, other))
        weight = near_object(one).to(scores.dtype)
        if mask is not None:
            weight = weight * resize_image(mask.to(scores.dtype), one.shape[2:])
        weight = weight[:, :, ::STRIDE, ::STRIDE, ::STRIDE]
        return (weight * scores).sum() / weight.sum().clamp(min=1e-12)


class FeatureSimilarity(NetworkSimilarity):
    """The distance of features that the encoder of an autoencoder gives; see `feature_distance`.

    Yoo et al. 2017, arXiv:1707.07833. The features are those of the moved image itself, not moved
    features, so they need not stay the same when the image turns.

    Args:
        network: See `NetworkSimilarity`.
        spacing_mm: See `NetworkSimilarity`.
        model_mm: See `NetworkSimilarity`.
        weights: Weight of the features of each resolution.
    """

    def __init__(
        self,
        network: nn.Module,
        spacing_mm: Sequence[float],
        model_mm: float,
        weights: Sequence[float],
    ) -> None:
        super().__init__(network, spacing_mm, model_mm)
        self._weights = tuple(float(w) for w in weights)

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        return self.distance(self.features(fixed, mask), moved, mask)

    def features(self, image: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Returns the features of an image within a mask."""
        assert isinstance(self._network, FeatureAutoencoder)
        return self._network.features(self.seen(image, mask))

    def distance(self, fixed: Sequence[Tensor], moved: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the value, from the features of the fixed image."""
        assert isinstance(self._network, FeatureAutoencoder)
        if mask is not None:
            seen = resize_image(full(mask), self.seen_shape(mask.shape[2:]))
            weight = filled_up(seen, self._network.multiple, edge=False)
        else:
            weight = None
        return feature_distance(fixed, self.features(moved, mask), self._weights, weight)

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one image, whose features are computed once."""
        return _BoundFeatures(self, fixed, mask)


class _BoundFeatures(BoundSimilarity):
    """The distance to the features of one image, which are kept as long as the mask stays."""

    def __init__(self, similarity: FeatureSimilarity, fixed: Tensor, mask: Tensor | None) -> None:
        super().__init__(similarity, fixed, mask)
        self._own = similarity
        self._kept: list[Tensor] | None = None

    def value(self, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `BoundSimilarity`."""
        with torch.no_grad():
            if mask is not None:
                features = self._own.features(self._fixed, mask)
            else:
                if self._kept is None:
                    self._kept = self._own.features(self._fixed, self._mask)
                features = self._kept
        return self._own.distance(features, moved, self._mask if mask is None else mask)

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient; see `BoundSimilarity`."""
        with torch.enable_grad():
            variable = moved.detach().requires_grad_(True)
            value = self.value(variable, mask)
            (gradient,) = torch.autograd.grad(value, variable)
        return value.detach(), gradient.contiguous()
