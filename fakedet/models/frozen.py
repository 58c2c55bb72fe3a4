"""An encoder on a pretrained trunk that is never trained: features at several depths, and a small net on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.models.feature_memory import FeatureMemory, fingerprint
from fakedet.models.reals import rows_of_reals
from fakedet.models.smoothing import SMOOTHERS, smooth
from fakedet.models.timm_model import create_timm_model, required_size
from fakedet.models.weights import load_weights


class FrozenTrunk(nn.Module):
    """Describe images by what a pretrained timm model, never trained, sees at several depths.

    What a net learned of a million photographs says more of an unseen generator than what it learns of a thousand
    fakes: fine-tuned, it learns those (Ojha et al., CVPR 2023). Features between the pixels and the classes tell more
    than the last ones.

    On a CPU images are seen one by one and what was seen is remembered (:class:`FeatureMemory`): a row never
    depends on its batch, and pictures that come again, in the next epoch or another run of a study, cost nothing.

    Args:
        name: a timm model.
        pretrained: take timm's weights, from the local cache or the network.
        weights: a file with weights, or ``package:NAME``; see :func:`load_weights`. Replaces ``pretrained``.
        input_size: side in pixels that crops are enlarged or shrunk to, the one that the weights know; None: none.
        levels: which of the model's depths, as timm counts them; -1 is the last.
        responses: ways to smooth an image (:func:`fakedet.models.smoothing.smooth`); beside its features stands, for
            each way, how they change when its fine texture is smoothed away while what it shows stays.
        pool: what stands for a level: "mean", of each feature over the image; or "class", the class token of a
            transformer at that depth, which tells more where there is one (Koutlis and Papadopoulos, ECCV 2024).

    Raises:
        UserError: weights that are not there, a model without such levels or without a class token, a size that is
            out of range or not the model's, or no such way.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool,
        weights: str | None,
        input_size: int | None,
        levels: Sequence[int],
        responses: Sequence[str] = (),
        pool: str = "mean",
    ) -> None:
        super().__init__()
        self.pool = choose(pool, ("mean", "class"), "model.encoder.pool")
        self.model = create_timm_model(name, 3, pretrained and weights is None, {})
        if weights is not None:
            load_weights(self.model, weights, 3)
        _check_size(self.model, name, input_size)
        if pool == "class" and getattr(self.model, "cls_token", None) is None:
            raise UserError(f"model.encoder.pool=class: '{name}' has no class token; use pool=mean")
        depths = [int(stage["num_chs"]) for stage in getattr(self.model, "feature_info", ())]
        if not hasattr(self.model, "forward_intermediates") or not depths:
            raise UserError(f"model.encoder.name: '{name}' does not give its features at several depths")
        if not levels or not all(
            isinstance(level, int) and -len(depths) <= level < len(depths) for level in levels
        ):
            raise UserError(
                f"model.encoder.levels={levels if levels is None else list(levels)}: a list of levels; '{name}' has "
                f"0 to {len(depths) - 1}, or -1 for the last"
            )
        self.levels = sorted({level % len(depths) for level in levels})
        self.responses = tuple(choose(name, SMOOTHERS, "model.encoder.responses") for name in responses or ())
        self.out_dim = sum(depths[level] for level in self.levels) * (1 + len(self.responses))
        self.input_size = input_size
        settings: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(settings[key]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.memory = FeatureMemory()
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Stay in evaluation mode whatever ``mode`` is."""
        return super().train(False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.memory.forget()
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Describe float RGB (N, 3, H, W) in [0, 1] as float32 (N, out_dim), without gradients."""
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self.describe(images)
        with torch.autocast("cpu", enabled=False):  # bfloat16 is slower for such nets on CPUs
            rows = [self.memory.features(self, image) for image in images]
        return torch.stack(rows) if rows else images.new_zeros(0, self.out_dim)

    def describe(self, images: Tensor) -> Tensor:
        """Give each level's features, pooled over the image, and the responses of each: (N, out_dim)."""
        features = self._features(images)
        changes = [self._features(smooth(images, name)) - features for name in self.responses]
        return torch.cat([features, *changes], dim=1)

    def says_the_same(self, other: FrozenTrunk) -> bool:
        """Say whether another trunk would describe every image alike."""
        return fingerprint(self) == fingerprint(other)

    def _features(self, images: Tensor) -> Tensor:
        seen = images
        if self.input_size is not None and tuple(images.shape[-2:]) != (self.input_size, self.input_size):
            seen = F.interpolate(
                images, size=(self.input_size, self.input_size), mode="bicubic", align_corners=False
            )
        seen = ((seen - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        options = {"return_prefix_tokens": True} if self.pool == "class" else {}
        levels = self.model.forward_intermediates(  # type: ignore[operator]
            seen, indices=self.levels, intermediates_only=True, **options
        )
        if self.pool == "class":
            pooled = [tokens[:, 0] for _, tokens in levels]
        else:
            pooled = [level.mean(dim=(2, 3)) for level in levels]
        return torch.cat([features.float() for features in pooled], dim=1)


class FrozenEncoder(nn.Module):
    """Embed images by a frozen trunk, standardised by real photographs, and one hidden layer that is trained.

    The standardisation is fitted once, on real training photographs alone (:meth:`fit_reals`), and travels in the
    checkpoint.

    Args:
        name: see :class:`FrozenTrunk`; so are ``pretrained``, ``weights``, ``input_size``, ``levels``,
            ``responses``, ``pool``.
        pretrained: see there.
        weights: see there.
        input_size: see there.
        levels: see there.
        responses: see there.
        pool: see there.
        hidden: of the layer, and dimension of the embedding; None: no layer, the standardised features themselves.
        dropout: in training, before and after the layer.

    Raises:
        UserError: a value out of range; see also :class:`FrozenTrunk`.
    """

    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: str | None = None,
        input_size: int | None = None,
        levels: Sequence[int] = (-2, -1),
        responses: Sequence[str] = (),
        hidden: int | None = 256,
        dropout: float = 0.5,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        if (hidden is not None and hidden < 1) or dropout is None or not 0.0 <= dropout < 1.0:
            raise UserError(
                f"model.encoder: hidden={hidden}, dropout={dropout}: needs at least one hidden unit (null: no layer) "
                "and a dropout from 0 to below 1"
            )
        self.trunk = FrozenTrunk(name, pretrained, weights, input_size, levels, responses, pool)
        size = self.trunk.out_dim
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("fitted", torch.tensor(False))
        self.layers: nn.Module = nn.Identity()
        if hidden is not None:
            self.layers = nn.Sequential(
                nn.Dropout(dropout), nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout)
            )
        self.feature_dim = size
        self.embedding_dim = hidden or size

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim)."""
        return self.embed(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Give the trunk's features (N, feature_dim) of images, standardised; they are the same in training."""
        standardised: Tensor = (self.trunk(images) - self.mean) / self.scale
        return standardised

    def embed(self, features: Tensor) -> Tensor:
        """Embed :meth:`features`."""
        embedding: Tensor = self.layers(features)
        return embedding.float()

    @torch.no_grad()
    def fit_reals(self, batches: Iterable[Tensor]) -> None:
        """Fit the standardisation to real photographs; once fitted it stays.

        Args:
            batches: float RGB (N, 3, H, W) in [0, 1].

        Raises:
            UserError: fewer photographs than two.
        """
        if bool(self.fitted):
            return
        rows = rows_of_reals(self.trunk, batches)
        self.mean.copy_(rows.mean(dim=0).float())
        self.scale.copy_((rows.std(dim=0) + 1e-6).float())
        self.fitted.fill_(True)


def _check_size(model: nn.Module, name: str, input_size: int | None) -> None:
    if input_size is None:
        return  # the crop's own size then, which is known when the first comes
    if input_size < 32:
        raise UserError(f"model.encoder.input_size={input_size}: at least 32 pixels")
    size = required_size(model, {})
    if size is not None and size != (input_size, input_size):
        raise UserError(
            f"model.encoder.input_size={input_size}: '{name}' takes images of {size[0]}x{size[1]} pixels alone; "
            f"set it to {size[0]}"
        )
