"""The detectors that come with fakedet, by name, and whether what they need is here; nothing slow is imported.

The default detector lies in the repository, outside of the installed package, without its backbone's public weights.
"""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

from fakedet.errors import UserError, one_line

DEFAULT = "wide"
SHIPPED = {
    DEFAULT: Path(__file__).parents[1] / "experiments" / "wide" / "detector.safetensors",
    "demo": Path(__file__).parent / "weights" / "demo.safetensors",
}
"""Names that stand for a checkpoint wherever one is asked for."""

DEMO = (
    "checkpoint=demo is a demonstration, trained on simulated generators: good for trying the commands, not for "
    "judging pictures"
)
WITHOUT = (
    "checkpoint=demo works without, but it was trained on simulated fakes only: good for trying the commands and for "
    "nothing else"
)


class Backbone(NamedTuple):
    """Where the weights of a pretrained timm model are."""

    variable: str  # environment variable that names a file of them, as conf/model/encoder reads it
    repository: str  # on the Hugging Face hub
    told: str


BACKBONES = {
    "vit_base_patch16_clip_quickgelu_224.openai": Backbone(
        "FAKEDET_CLIP", "timm/vit_base_patch16_clip_224.openai", "OpenAI's CLIP ViT-B/16 (330 MB)"),
    "vit_large_patch14_clip_quickgelu_224.openai": Backbone(
        "FAKEDET_CLIP_LARGE", "timm/vit_large_patch14_clip_224.openai", "OpenAI's CLIP ViT-L/14 (1.2 GB)"),
    "tf_efficientnet_lite2.in1k": Backbone(
        "FAKEDET_LITE", "timm/tf_efficientnet_lite2.in1k", "EfficientNet-Lite2 (22 MB)"),
}  # fmt: skip


def require_shipped(checkpoint: str | Path, backbone: str | Path | None = None) -> None:
    """Say within seconds what to fetch where the default detector, or the backbone that it leaves out, is not here.

    Other checkpoints are not looked at.

    Raises:
        UserError: the weights are missing, or no file of the backbone's is named or cached and the hub does not answer.
    """
    if str(checkpoint) != DEFAULT or Path(checkpoint).is_file():
        return
    file = SHIPPED[DEFAULT]
    if not file.is_file():
        raise UserError(f"checkpoint={DEFAULT}: the default detector is not a part of the installed package; fetch "
                        f"{'/'.join(file.parts[-3:])} from fakedet's repository and pass checkpoint=FILE. {WITHOUT}"
                        )  # fmt: skip
    for name in {one.get("name") for one in _left_out(file).values()} if backbone is None else ():
        known = BACKBONES.get(str(name))
        if known is None or os.environ.get(known.variable) or is_cached(known.repository):
            continue
        if why := unreachable():
            raise UserError(
                f"checkpoint={DEFAULT} needs the weights of its backbone, {known.told}, which are not here: fetch "
                f"https://huggingface.co/{known.repository}/resolve/main/model.safetensors (this machine cannot: "
                f"{why}), or make the file as experiments/clip/README.md says, and pass backbone=FILE or export "
                f"{known.variable}=FILE. {WITHOUT}"
            )


def _left_out(file: Path) -> dict[str, Any]:
    """Return the backbones that a safetensors checkpoint leaves out; none of a damaged one, which is told later."""
    try:
        with open(file, "rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        return dict(json.loads(header["__metadata__"]["fakedet"])["backbones"] or {})
    except (OSError, ValueError, LookupError, TypeError, MemoryError, OverflowError):
        return {}


def is_cached(repository: str) -> bool:
    """Say whether timm would find a model's weights in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def unreachable() -> str:
    """Ask the Hugging Face hub once for an answer, for three seconds; return why there is none, or ""."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=3.0).close()
    except HTTPError:
        return ""  # an answer, too
    except (OSError, ValueError) as error:
        return f"{constants.ENDPOINT}: {one_line(getattr(error, 'reason', error))}"
    return ""
