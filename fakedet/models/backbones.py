"""Pretrained backbones: timm models by name, their weights, and an encoder over one that is never trained."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from timm.models import adapt_input_conv, load_state_dict
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fakedet.errors import UserError, choose, nearest, one_line
from fakedet.models.features import FeatureCache, fingerprint
from fakedet.models.heads import Classifier
from fakedet.shipped import BACKBONES, unreachable
from fakedet.utils import fast_dtype


class MissingWeights(UserError):
    """A model's pretrained weights are neither on this machine nor can be downloaded, for the reason ``error``."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.name, self.error = name, error
        super().__init__(f"model.encoder.pretrained: {self.told('model.encoder.weights')}; "
                         "model.encoder.pretrained=false begins with random numbers")  # fmt: skip

    def told(self, setting: str) -> str:
        """Say what is missing and how to get it; ``setting`` names a file of weights."""
        settings = timm.get_pretrained_cfg(self.name)
        place = (settings.hf_hub_id or settings.url) if settings is not None else None
        variable = f" (or export {BACKBONES[self.name].variable}=FILE)" if self.name in BACKBONES else ""
        hub = settings.hf_hub_id if settings is not None else None
        fetch = f"fetch https://huggingface.co/{hub}/resolve/main/model.safetensors" if hub else "put the file here"
        return (
            f"no weights '{place or self.name}' on this machine: {fetch} and pass {setting}=FILE{variable}. "
            "They are neither in the local cache nor can be downloaded "
            f"({shorten(one_line(self.error), 160, placeholder=' …')})"
        )


def create_timm_model(
    name: str,
    channels: int = 3,
    pretrained: bool = False,
    weights: str | Path | None = None,
    keep_head: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a timm model without its classifier, with timm's own loading of weights.

    Args:
        name: a timm model name, with or without a tag of pretrained weights ("resnet50.a1_in1k").
        channels: input channels; three-channel weights are adapted by timm to another number.
        pretrained: load timm's pretrained weights, from the local cache or the network.
        weights: a file with weights of this model, safetensors or a PyTorch state dict; replaces ``pretrained``. It is
            read as tensors only, without running code.
        keep_head: keep the last linear layer: CLIP's is no classifier but its projection.
        **options: further keyword arguments of ``timm.create_model``.

    Raises:
        UserError: an unknown name, tag or option, or weights that cannot be had or do not fit.
    """
    base = name.split(".")[0]
    if not timm.is_model(base):
        # With thousands of names a full list would bury the message.
        hint = nearest(base, timm.list_models())
        hint = hint if hint.startswith("did you mean") else "timm.list_models() lists all names"
        raise UserError(f"model.encoder.name: timm has no model '{name}'; {hint}")
    tags = timm.list_models(f"{base}.*", pretrained=True)
    if name != base and name not in tags:
        raise UserError(f"model.encoder.name: timm has no weights tagged '{name}'; {nearest(name, [base, *tags])}")
    for option in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"):  # they name files or downloads
        if option in options:
            raise UserError(f"model.encoder.{option}: weights come from model.encoder.weights=FILE alone")
    settings, download = timm.get_pretrained_cfg(name), pretrained and weights is None
    if download and not (settings and settings.has_weights):
        raise UserError(
            f"model.encoder.pretrained: timm has no pretrained weights for '{name}'; set it to false, "
            "or pass model.encoder.weights=FILE"
        )
    if not keep_head:
        options["num_classes"] = 0
    # Without an answer of the hub, its client would try for a minute, even if the file is in its cache.
    why, offline = unreachable() if download and settings and settings.hf_hub_id else "", constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = offline or bool(why)
        model: nn.Module = timm.create_model(name, pretrained=download, in_chans=channels, **options)
    except Exception as error:  # whatever a builder, a hub client or the network raises
        if download and not isinstance(error, TypeError):
            raise MissingWeights(name, OSError(why) if why else error) from error
        raise UserError(f"model.encoder: timm cannot build '{name}': {one_line(error)}") from error
    finally:
        constants.HF_HUB_OFFLINE = offline
    if weights is not None:
        _load_weights(model, weights, channels)
    return model


def _load_weights(model: Any, file: str | Path, channels: int) -> None:
    """Load a file of weights as timm loads its own, but completely or not at all: timm only logs what is missing."""
    state = read_weights(file, "model.encoder.weights")
    try:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        state = state if convert is None else convert(state, model)
        own = model.state_dict()
        settings = model.pretrained_cfg
        for name in _names(settings.get("first_conv")):
            key = f"{name}.weight"
            if key in state and key in own and state[key].shape != own[key].shape and state[key].shape[1] == 3:
                state[key] = adapt_input_conv(channels, state[key])
        heads = tuple(f"{name}." for name in _names(settings.get("classifier")))
        kept = {key: value for key, value in state.items() if key in own or not key.startswith(heads)}
        found = model.load_state_dict(kept, strict=False)
    except Exception as error:  # a conversion meant for other weights may raise anything
        raise UserError(
            f"model.encoder.weights: {file} does not fit the model: {shorten(one_line(error), 300)}"
        ) from error
    unmatched = (("weights of the model are not in it", found.missing_keys),
                 ("of its weights are not in the model", found.unexpected_keys))  # fmt: skip
    problems = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
                for what, keys in unmatched if keys]  # fmt: skip
    if problems:
        raise UserError(f"model.encoder.weights: {file} is of another model: {'; '.join(problems)}")


def _names(value: str | Iterable[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def required_size(model: nn.Module, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the one image size (H, W) that a timm model takes, or None where it takes any."""
    settings: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if not settings.get("fixed_input_size") or options.get("dynamic_img_size"):
        return None
    size = options.get("img_size") or settings["input_size"][1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def read_weights(file: str | Path, key: str) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a PyTorch file of one or of a checkpoint, without running code.

    Raises:
        UserError: no such file, or one that holds something else; ``key`` is the config key that names it.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}")
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise UserError(
            f"{key}: {path} cannot be read as safetensors or as a PyTorch file of tensors: "
            f"{shorten(one_line(error), 300)}"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}: {path} does not hold a state dict: names with tensors")
    return state


def describe_public(name: str, pretrained: bool, weights: str | Path | None) -> dict[str, str | None] | None:
    """Describe public weights that are never trained, which checkpoints leave out; None if they are not public.

    A frozen encoder whose timm model is its ``model`` keeps this as ``public``.
    """
    return {"name": name, "file": Path(weights).name if weights else None} if pretrained else None


def public_backbones(module: nn.Module) -> dict[str, dict[str, str | None]]:
    """Describe the frozen models with public weights in a module: place in the state dict → name, file, sha256.

    "vectors" is the sha256 of all weights but the matrices, in 16 bits: the same for a copy whose matrices are rounded.
    """
    found, digests = {}, {}
    for place, part in module.named_modules(remove_duplicate=False):
        if public := getattr(part, "public", None):
            if id(part.model) not in digests:
                digest, vectors = hashlib.sha256(), hashlib.sha256()
                for name, value in part.model.state_dict().items():
                    described = f"{name} {value.dtype} {tuple(value.shape)}\n".encode()
                    digest.update(described)
                    digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
                    if value.ndim != 2:
                        vectors.update(described + value.cpu().half().numpy().tobytes())
                digests[id(part.model)] = {"sha256": digest.hexdigest(), "vectors": vectors.hexdigest()}
            found[f"{place}.model"] = {**public, **digests[id(part.model)]}
    return found


def load_linear_head(classifier: Classifier, file: str | Path) -> None:
    """Load a published linear classifier: a state dict with ``weight`` (1, D) and ``bias`` (1).

    Its names may begin with the name of a layer, such as "fc."; UserError if the file is missing or of another shape.
    """
    if not Path(file).expanduser().is_file():
        raise UserError(
            f"model.head: there is no file {file}; UnivFD's is pretrained_weights/fc_weights.pth of its repository"
        )
    state = {name.rpartition(".")[2]: value for name, value in read_weights(file, "model.head").items()}
    wanted = {"weight": classifier.linear.weight.shape, "bias": classifier.linear.bias.shape}
    if {name: value.shape for name, value in state.items()} != wanted:
        got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        raise UserError(
            f"model.head: {file} holds {got}; wanted are weight {tuple(wanted['weight'])} and bias (1,), for the "
            "embedding of model.encoder"
        )
    classifier.linear.load_state_dict(state)


PRECISIONS = ("auto", "float32", "bfloat16")


class FrozenBackbone(nn.Module):
    """Compute the features of images at several depths of a pretrained timm model, which is never trained.

    Features learned from a million photographs generalise better to unseen generators than a net that is fine-tuned on
    a thousand fakes (Ojha et al., CVPR 2023); those of intermediate layers do better than the last ones (Koutlis
    and Papadopoulos, ECCV 2024).

    Features are kept (:class:`FeatureCache`): images that come again, in the next epoch or in another run of a study,
    cost nothing. On a CPU each image is computed alone, by one thread, on a GPU in batches of a fixed size: a row never
    depends on the other rows of its batch.

    Args:
        name, pretrained, weights: see :func:`create_timm_model`.
        input_size: side in pixels that crops are resized to, usually that of the pretraining; None: not resized.
        levels: which of the model's depths, as timm counts them; -1 is the last.
        pool: how a level is pooled: "mean" of each feature over the image, or "class", a transformer's class token.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the device has it (on CPUs AMX or AVX512-BF16), a
            half to a third of the time; docs/performance.md says by how much features then differ.

    Raises:
        UserError: missing weights, a model without such levels or without a class token, or a size that is out of range
            or not the model's.
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
        pool: str = "mean",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.pool = choose(pool, ("mean", "class"), "model.encoder.pool")
        self.precision = choose(precision, PRECISIONS, "model.encoder.precision")
        self.model = create_timm_model(name, 3, pretrained, weights)
        self.public = describe_public(name, pretrained, weights)
        if input_size is not None:
            size = required_size(self.model, {})
            if input_size < 32:
                raise UserError(f"model.encoder.input_size={input_size}: at least 32 pixels")
            if size is not None and size != (input_size, input_size):
                raise UserError(
                    f"model.encoder.input_size={input_size}: '{name}' takes images of {size[0]}x{size[1]} pixels "
                    f"alone; set it to {size[0]}"
                )
        if pool == "class" and getattr(self.model, "cls_token", None) is None:
            raise UserError(f"model.encoder.pool=class: '{name}' has no class token; use pool=mean")
        depths = [int(stage["num_chs"]) for stage in getattr(self.model, "feature_info", ())]
        if not hasattr(self.model, "forward_intermediates") or not depths:
            raise UserError(f"model.encoder.name: '{name}' does not give its features at several depths")
        if not levels or not all(isinstance(level, int) and -len(depths) <= level < len(depths) for level in levels):
            raise UserError(
                f"model.encoder.levels={levels if levels is None else list(levels)}: a list of levels; '{name}' has "
                f"0 to {len(depths) - 1}, or -1 for the last"
            )
        self.levels = sorted({level % len(depths) for level in levels})
        self.out_dim = sum(depths[level] for level in self.levels)
        self.input_size = input_size
        settings: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(settings[key]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.cache = FeatureCache()
        self._fast: tuple[nn.Module, ...] = ()  # not a part of the module: its weights are those of ``model``
        self.train(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in evaluation mode whatever ``mode`` is."""
        return super().train(False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.cache.forget()
        self._fast = ()
        super()._load_from_state_dict(*args, **kwargs)

    def freeze(self) -> None:
        """Compute in float32 from now on, as an exported model does."""
        self.precision = "float32"
        self.cache.forget()

    @property
    def dtype(self) -> torch.dtype:
        """The precision that features are computed in on the device where the backbone is."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": fast_dtype(self.mean.device)}[
            self.precision
        ]

    @torch.no_grad()
    def forward(self, images: Tensor, destroyer: Any = None, draws: Tensor | None = None) -> Tensor:
        """Compute the features of float RGB (N, 3, H, W) in [0, 1]: float32 (N, out_dim), without gradients.

        With a :class:`fakedet.methods.destroy.TraceDestroyer` and ``draws`` (N, width), compute those of the images'
        destroyed copies; copies are only made if their features are not known.
        """
        if torch.compiler.is_compiling():
            return self.describe(images)
        rows = self.cache.features(self, images, destroyer, draws)
        return torch.stack(rows).to(images.device) if rows else self.mean.new_zeros(0, self.out_dim)

    def describe(self, images: Tensor) -> Tensor:
        """Compute the pooled features of each level, (N, out_dim), without the cache."""
        device, model, dtype = images.device.type, self.model, self.dtype
        if dtype != torch.float32:
            if not self._fast:  # autocast would convert the weights anew for every image
                made = copy.deepcopy(self.model)
                for part in made.modules():
                    if isinstance(part, nn.Linear | nn.Conv2d):
                        part.to(dtype)
                last: Any = made.blocks[self.levels[-1]] if isinstance(made, VisionTransformer) else None
                if self.pool == "class" and isinstance(last, Block):  # its class token alone: other tokens are wrong
                    last.attn.proj.register_forward_pre_hook(  # type: ignore[union-attr]
                        lambda part, inputs: (inputs[0][:, :1],)
                    )
                    last.norm2.register_forward_hook(lambda part, inputs, output: output[:, :1])
                self._fast = (made,)
            model = self._fast[0]
        with torch.autocast(device, torch.bfloat16, enabled=dtype != torch.float32):
            return self._pooled(model, images)

    def _pooled(self, model: nn.Module, images: Tensor) -> Tensor:
        seen = images
        if self.input_size is not None and tuple(images.shape[-2:]) != (self.input_size, self.input_size):
            seen = F.interpolate(images, size=(self.input_size, self.input_size), mode="bicubic", align_corners=False)
        seen = ((seen - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        options = {"return_prefix_tokens": True} if self.pool == "class" else {}
        intermediates: Any = model.forward_intermediates
        levels = intermediates(seen, indices=self.levels, intermediates_only=True, stop_early=True, **options)
        is_class = self.pool == "class"
        pooled = [level[1][:, 0] if is_class else level.mean(dim=(2, 3)) for level in levels]
        return torch.cat([features.float() for features in pooled], dim=1)


class FrozenEncoder(nn.Module):
    """Embed images by a frozen backbone, standardised on real photographs, and one hidden layer that is trained.

    The standardisation is fitted once, on real training photographs alone (:meth:`fit_reals`), and is part of the
    checkpoint.

    Args:
        name, pretrained, weights, input_size, levels, pool, precision: see :class:`FrozenBackbone`.
        hidden: width of the layer and dimension of the embedding; None: no layer, the standardised features.
        dropout: rate before and after the layer, in training.

    Raises:
        UserError: a value out of range; see also :class:`FrozenBackbone`.
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
        hidden: int | None = 256,
        dropout: float = 0.5,
        pool: str = "mean",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        if (hidden is not None and hidden < 1) or dropout is None or not 0.0 <= dropout < 1.0:
            raise UserError(
                f"model.encoder: hidden={hidden}, dropout={dropout}: needs at least one hidden unit (null: no layer) "
                "and a dropout from 0 to below 1"
            )
        self.backbone = FrozenBackbone(name, pretrained, weights, input_size, levels, pool, precision)
        size = self.backbone.out_dim
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("fitted", torch.tensor(False))
        self.layers: nn.Module = nn.Identity()
        if hidden is not None:
            self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.feature_dim = size
        self.embedding_dim = hidden or size

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim)."""
        return self.embed(self.features(images))

    def features(self, images: Tensor, destroyer: Any = None, draws: Tensor | None = None) -> Tensor:
        """Compute the backbone's features (N, feature_dim), standardised; training does not change them.

        Args:
            images, destroyer, draws: see :meth:`FrozenBackbone.forward`.
        """
        standardised: Tensor = (self.backbone(images, destroyer, draws) - self.mean) / self.scale
        return standardised

    def embed(self, features: Tensor) -> Tensor:
        """Embed what :meth:`features` returns."""
        embedding: Tensor = self.layers(features)
        return embedding.float()

    @torch.no_grad()
    def fit_reals(self, batches: Iterable[Tensor]) -> None:
        """Fit the standardisation to real photographs, float RGB (N, 3, H, W) in [0, 1]; once fitted it stays.

        Raises:
            UserError: fewer than two photographs.
        """
        if bool(self.fitted):
            return
        rows = torch.cat([self.backbone(images) for images in batches]).double()
        if len(rows) < 2:
            raise UserError("model.encoder: it is fitted to real photographs, and needs at least two of them")
        self.mean.copy_(rows.mean(dim=0).float())
        self.scale.copy_((rows.std(dim=0) + 1e-6).float())
        self.fitted.fill_(True)


def share_backbone(encoder: Any, other: Any) -> None:
    """Let ``encoder`` use the frozen backbone of ``other`` if both are the same, to hold and save it once."""
    own, theirs = getattr(encoder, "backbone", None), getattr(other, "backbone", None)
    are_frozen = isinstance(own, FrozenBackbone) and isinstance(theirs, FrozenBackbone)
    if are_frozen and fingerprint(own) == fingerprint(theirs):
        encoder.backbone = theirs
