"""Checkpoints: what one holds, written whole, read as data. No class that a file names is called before it is judged.

A checkpoint (``.ckpt``, or ``.safetensors`` as ``fakedet export`` writes) holds weights and, under the key
``fakedet``, a :class:`CheckpointInfo` of plain values. :func:`load_detector` builds the detector from these alone. Its
classes must be defined in fakedet, or in a package that the user trusts by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import numpy as np
import safetensors
import safetensors.torch
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from fakedet.data.transforms import check_policy
from fakedet.errors import UserError, one_line
from fakedet.hub import PREFIX, fetch
from fakedet.methods.base import TRAINING_KEYS, Detector
from fakedet.methods.ntf import NaturalTracePretraining, TraceSource
from fakedet.metrics.decisions import OperatingPoint
from fakedet.models.backbones import MissingWeights, public_backbones
from fakedet.models.features import check_backbones
from fakedet.shipped import BACKBONES, SHIPPED, require_shipped
from fakedet.utils import fits, replacing

LARGEST_CROP = 2**12  # pixels a side
FORMAT = 2  # of checkpoints; version 0.1 of fakedet wrote 1
SAFETENSORS = ".safetensors"


class Model(TypedDict):
    """What every model config holds."""

    name: str


class TrainingData(TypedDict):
    """What a detector was trained on."""

    manifest: str
    real: dict[str, int]  # images of each collection
    fake: dict[str, int]
    jpeg_quality: list[float] | None  # percentiles 5, 50 and 95


@dataclass
class CheckpointInfo:
    """What a checkpoint says about itself; plain values only, so that it loads without running code."""

    model: Model  # the resolved model config
    stage1: Model | None  # the model config of the stage 1 that it was trained over
    seen_generators: list[str]  # generators whose fakes it was trained on
    crop_size: int  # side of its crops in pixels
    eval_policy: str  # how evaluation takes crops: see fakedet.data.transforms.evaluation_views
    match: dict[str, Any] | None  # how images were matched while they were loaded; None if they were not
    manifest_sha256: str
    pairs: dict[str, Any] | None  # which reals each generator is compared with; None: all
    held_out: list[Any]  # generators left out of training, and what measures them
    training_data: TrainingData
    seed: int
    name: str
    operating_point: dict[str, Any] | None = None  # see OperatingPoint; None before it is fitted
    # What tells its method apart from others: see fakedet.evaluation.predictions.method_settings.
    settings: dict[str, Any] | None = None
    # Frozen backbones with public weights that the file leaves out: place → name, file and sha256; None for none.
    backbones: dict[str, Any] | None = None
    format: int = FORMAT

    @classmethod
    def from_dict(cls, content: Any, path: Path) -> CheckpointInfo:
        """Make the info of plain values; UserError for a value that is missing, unknown or of another type."""
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged: what it says of itself is no mapping")
        if content.get("format") != FORMAT:
            version = "fakedet 0.1" if content.get("format") == 1 else "another version of fakedet"
            raise UserError(f"{path} was written by {version}, whose checkpoints this one does not read; train it "
                            "anew, or use that version")  # fmt: skip
        fields, kinds = {one.name: one for one in dataclasses.fields(cls)}, get_type_hints(cls)
        lacking = [name for name, one in fields.items() if one.default is dataclasses.MISSING and name not in content]
        if lacking:
            raise UserError(f"{path} is damaged: it lacks {', '.join(lacking)}")
        for name, value in content.items():
            if name not in fields:
                raise UserError(f"{path} is damaged or of another version: it holds '{name}'")
            if not fits(value, kinds[name]):
                told = str(fields[name].type).removesuffix(" | None")
                wanted = f"dict of a {told}" if told[0].isupper() else told
                raise UserError(f"{path} is damaged: '{name}' in it is no {wanted}")
        if not 0 < content["crop_size"] <= LARGEST_CROP:
            raise UserError(f"{path} is damaged: 'crop_size' in it is {content['crop_size']}")
        try:
            check_policy(content["eval_policy"], content["crop_size"])
        except UserError as error:
            told = str(error).replace("data.eval_policy", "'eval_policy' in it")
            raise UserError(f"{path} is damaged: {told}") from error
        if content.get("operating_point") is not None:
            _check_operating_point(content["operating_point"], path)
        return cls(**content)


def _check_operating_point(content: Any, path: Path) -> None:
    try:
        point = OperatingPoint.from_dict(content)
        json.dumps(content, allow_nan=False)  # as it is published
        point.calibration(np.asarray([0.0, *point.fakes], dtype=np.float64))
        if point.reference is not None:
            np.asarray(point.reference.scores, dtype=np.float64)
            point.reference.p_values(np.zeros(1), np.zeros(1))
        if not fits([point.promise(0.05, 0.05), str(point.left_out or "")], list[str]):
            raise ValueError("names with control codes")
        _ = (
            point.threshold > 0,
            point.lowest_fake(0.05),
            f"{point.rate:%} {point.n_real:d} {point.n_fake:d}",
            ", ".join(point.notes),
        )
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged: its operating point: {one_line(error)}") from error


def load_detector(path: str | Path, trust: Sequence[str] = (), backbone: str | Path | None = None) -> Detector:
    """Build the detector of a checkpoint, with its weights, in evaluation mode on the CPU.

    Args:
        path: as for :func:`read_checkpoint`.
        trust: packages, besides fakedet, whose classes the checkpoint may name. Their code is imported and run: name
            only those that you would run anyway.
        backbone: file with the public weights that the checkpoint leaves out; None: the one that
            :data:`fakedet.shipped.BACKBONES` names, else timm's cache or the network.

    Raises:
        UserError: no such file, not a checkpoint of fakedet, a class that it may not name, weights that do not fit, or
            a backbone that is not here or has another sha256.
    """
    require_shipped(path, backbone)
    try:
        return detector_of(read_checkpoint(path), path, trust, backbone)
    except RecursionError as error:
        raise UserError(f"{path} is damaged: its values are nested too deeply") from error


def load_stage1(
    path: str | Path, trust: Sequence[str] = (), encoder: Mapping[str, Any] | None = None
) -> NaturalTracePretraining:
    """Load a checkpoint of stage 1; UserError as in :func:`load_detector`, and for one of another method.

    A backbone that it leaves out comes from the same file as in the config ``encoder``, if that is of the same name.
    """
    own, known = read_checkpoint(path)["fakedet"]["model"].get("encoder"), encoder or {}
    is_same = isinstance(own, dict) and own.get("name") == known.get("name")
    method = load_detector(path, trust, known.get("weights") if is_same else None)
    if not isinstance(method, NaturalTracePretraining):
        raise UserError(f"{path} is a checkpoint of '{method.info['name']}', not of stage 1; train one with "
                        "`fakedet train model=ntf_stage1`")  # fmt: skip
    return method


def detector_of(
    checkpoint: Mapping[str, Any], path: str | Path, trust: Sequence[str] = (), backbone: str | Path | None = None
) -> Detector:
    """Build the detector of a checkpoint that :func:`read_checkpoint` has read; see :func:`load_detector`."""
    info = CheckpointInfo.from_dict(checkpoint["fakedet"], Path(path))
    # Everything is judged before anything is built.
    judge, left_out = _Judge(path, trust), {str(place).partition(".")[0] for place in info.backbones or ()}
    make_model, make_stage1 = judge.model(info.model, "model", "encoder" in left_out, backbone), None
    if info.stage1 is not None:
        make_stage1 = judge.model(info.stage1, "stage1", "source" in left_out, backbone)
    parts: dict[str, Any] = {}
    if make_stage1 is not None and getattr(make_model.target, "needs_stage1", False):
        stage1 = make_stage1()
        if not isinstance(stage1, NaturalTracePretraining):
            raise UserError(f"{path}: stage1._target_ is no stage 1")
        parts["source"] = TraceSource(stage1.encoder, stage1.homogeneous)
    method = make_model(**parts)
    if info.backbones:
        check_backbones(checkpoint["fakedet"], {"backbones": public_backbones(method)}, path, "backbone", rounded=True)
    method.info, method.config = dataclasses.asdict(info), dict[str, Any](**info.model)
    method.trust, method.backbone = tuple(trust), backbone
    try:
        method.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the weights do not fit the config inside it: {one_line(error)}") from error
    return method.eval()


@dataclass
class _Judged:
    """A class that may be called, with keyword values that are plain or judged themselves."""

    target: type
    values: dict[str, Any]
    path: str | Path
    place: str

    def __call__(self, **parts: Any) -> Any:
        values = {name: one() if isinstance(one, _Judged) else one for name, one in self.values.items()}
        try:
            return self.target(**values, **parts)
        except MissingWeights as error:
            raise UserError(f"{self.path}: it leaves out its backbone '{error.name}', and there are "
                            f"{error.told('backbone')}") from error  # fmt: skip
        except UserError as error:
            file = values.get("weights") or ""
            variables = (one.variable for one in BACKBONES.values() if os.environ.get(one.variable, "-") == file)
            told = one_line(error).replace("model.encoder.weights", next(variables, "backbone"))
            raise UserError(f"{self.path}: {told}") from error
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise UserError(f"{self.path}: {self.place} cannot be built: {one_line(error)}") from error


@dataclass(frozen=True)
class _Judge:
    """Finds the classes that a checkpoint names, and judges them and their values; nothing is called."""

    path: str | Path
    trust: Sequence[str]

    def model(self, config: Any, place: str, public: bool, backbone: str | Path | None) -> _Judged:
        """Judge a model config without what only training needs: optimiser, loss, destroyed copies, pretrained weights.

        ``public`` says that the checkpoint leaves out the encoder's pretrained weights: they are loaded from the file
        ``backbone``, never from one that the checkpoint names.
        """
        if not isinstance(config, dict) or not isinstance(config.get("encoder"), dict):
            raise UserError(f"{self.path} is damaged: '{place}' in it is no model config")
        model = {key: value for key, value in config.items() if key not in TRAINING_KEYS}
        if model.get("_target_") == "fakedet.methods.ntf.NaturalTraceForensics":
            residual = model.pop("residual", None)  # a term of earlier checkpoints, of most with the weight 0
            if isinstance(residual, dict) and residual.get("weight"):
                raise UserError(f"{self.path}: its logit has a trace residual, which left fakedet; f3e9894 reads it")
        without: dict[str, Any] = {"optimizer": {}, "loss": None, "copies": None, "head": None, "copies_per_real": 0.0}
        model |= {key: value for key, value in without.items() if key in model}
        encoder = {key: value for key, value in model["encoder"].items() if key != "cache_dir"}  # of timm's downloads
        if "pretrained" in encoder:  # else the weights come from the checkpoint
            known = BACKBONES.get(str(encoder.get("name")))
            file = backbone or (os.environ.get(known.variable) if known else None)
            encoder |= {"pretrained": public, "weights": str(file) if public and file else None}
        return self.node({**model, "encoder": encoder}, place, Detector)

    def node(self, node: dict[Any, Any], place: str, kind: type) -> _Judged:
        """Judge the class that a node names, which must be a ``kind``, and its values."""
        judged = _Judged(self.find(node.get("_target_"), place, kind), {}, self.path, place)
        for key, value in node.items():
            where = f"{place}.{key}"
            if key == "_target_":
                continue
            if not isinstance(key, str) or not key.isidentifier() or key.startswith("_"):
                raise self.not_plain(where)
            is_nested = isinstance(value, dict) and "_target_" in value
            judged.values[key] = self.node(value, where, nn.Module) if is_nested else self.plain(value, where)
        return judged

    def find(self, name: Any, place: str, kind: type) -> type:
        """Find the class of a name."""

        def refused(why: str) -> UserError:
            return UserError(f"{self.path}: {place} names {name!r}, which is refused: {why}")

        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise refused("it is not of the form package.module.Class")
        module, _, attribute = name.rpartition(".")
        package = module.partition(".")[0]
        if package != "fakedet" and package not in self.trust:
            raise refused("a checkpoint may name classes of fakedet, and of packages that you trust by "
                          f"trust=[{package or name}]")  # fmt: skip
        if module.endswith("__main__"):
            raise refused("it is no module of classes")
        try:
            # Of a package that is trusted: importing runs no code of the checkpoint's.
            found = vars(importlib.import_module(module)).get(attribute)
        except Exception as error:  # a module that does not exist, or a trusted one that fails
            raise refused(f"there is no module {module} ({one_line(error)})") from error
        if not isinstance(found, type) or found.__module__.partition(".")[0] != package:
            raise refused(f"it is not a class that is defined in {package}")
        if not issubclass(found, kind):
            raise refused(f"it is no {kind.__name__}")
        return found

    def plain(self, value: Any, where: str) -> Any:
        """Return a value of lists, mappings, numbers and text; UserError for anything else."""
        if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("_") for key in value):
            return {key: self.plain(one, f"{where}.{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(one, where) for one in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise self.not_plain(where)

    def not_plain(self, where: str) -> UserError:
        """Return the error for a value that is refused."""
        return UserError(f"{self.path}: {where} is refused: a checkpoint holds plain keyword values")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of fakedet as tensors and plain values, without running code.

    ``path`` is a file that training or `fakedet export` (safetensors) wrote, or the name of a detector that comes with
    fakedet. Returns at least ``state_dict`` and ``fakedet``, the content of a :class:`CheckpointInfo`. UserError for no
    such file and one that is not a checkpoint of fakedet.
    """
    path = locate(path)
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}; `fakedet train` writes checkpoints/best.ckpt in its folder, "
            f"and {' and '.join(SHIPPED)} come with fakedet"
        )
    checkpoint = read_published(path) if path.suffix == SAFETENSORS else _unpickle(path)
    CheckpointInfo.from_dict(checkpoint["fakedet"], path)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is damaged: it lacks state_dict")
    return checkpoint


def locate(checkpoint: str | Path) -> Path:
    """Return the file of a checkpoint: a path, hf://OWNER/NAME on the hub, or one that comes with fakedet by name."""
    if str(checkpoint).startswith(PREFIX):
        return fetch(str(checkpoint))
    path = Path(os.path.expanduser(checkpoint))
    return path if path.is_file() else SHIPPED.get(str(checkpoint), path)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums that torch.save wrote
            damaged = archive.testzip()
    except Exception as error:  # whatever a damaged or foreign file makes the unpickler raise
        if path.suffix in (".onnx", ".pt2"):
            raise UserError(f"{path} is an export for other programs; fakedet reads the .ckpt that it was made from, "
                            f"or an export to {SAFETENSORS}") from error  # fmt: skip
        reason = one_line(error)
        if "weights_only" in reason or isinstance(error, zipfile.BadZipFile):  # PyTorch's advice is to run its code
            reason = "it is damaged, in a format of before PyTorch 1.6, or holds more than tensors and plain values"
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or "fakedet" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint that fakedet wrote: it has no 'fakedet' entry")
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of '{damaged}' in it is wrong; copy it anew")
    return checkpoint


def read_published(path: Path) -> dict[str, Any]:
    """Read ``state_dict`` and ``fakedet`` from a safetensors file; UserError if damaged or not written by fakedet."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        told = metadata.get("fakedet", "null")
        info = json.loads(told)
        weights |= {name: weights[of] for name, of in json.loads(metadata.get("same", "{}")).items()}
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError, LookupError, TypeError,
            AttributeError) as error:  # fmt: skip
        raise UserError(f"{path} cannot be read as safetensors: {one_line(error)}; copy it anew") from error
    if not isinstance(info, dict):
        raise UserError(f"{path} holds weights alone, not a detector; `fakedet export output=x{SAFETENSORS}` writes a "
                        "detector, and model.encoder.weights=FILE starts an encoder from weights")  # fmt: skip
    if metadata.get("sha256") != digest_of_weights(weights, told):
        raise UserError(f"{path} is damaged: its checksum is wrong; copy it anew")
    return {"state_dict": weights, "fakedet": info}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints so that a kill or a full disk leaves the last one whole.

    Lightning's own writes to the system's temporary folder and then copies, which a kill can cut in two.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; to a URL as Lightning does, to a file as :func:`write_whole` does."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_whole(checkpoint, Path(path))


def write_whole(content: Any, path: Path) -> None:
    """Write ``torch.save``'s bytes, whole or not at all; UserError (full disk, permission) leaves the old file."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # PyTorch's writer hides the system's error in one of its own
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
    except (UserError, RuntimeError) as error:
        raise UserError(f"checkpoint: {str(error).splitlines()[0]}. Make room, then give the same command again: it "
                        "goes on from the last checkpoint") from error  # fmt: skip


def write_published(path: Path, weights: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write weights, their checksum and the checkpoint's info into one safetensors file."""
    # Weights that are one in memory, as those of a shared backbone, are written once.
    first: dict[Any, str] = {}
    one = {name: first.setdefault((w.data_ptr(), w.dtype, w.shape, w.stride()), name) for name, w in weights.items()}
    copies = {name: weights[name].detach().cpu().contiguous().clone() for name in first.values()}
    told = json.dumps(info)
    metadata = {"fakedet": told, "sha256": digest_of_weights({name: copies[of] for name, of in one.items()}, told)}
    if len(copies) < len(one):
        metadata["same"] = json.dumps({name: of for name, of in one.items() if name != of})
    # Not save_file, whose files no other user may read, whatever the umask.
    path.write_bytes(safetensors.torch.save(copies, metadata))


def digest_of_weights(weights: Mapping[str, Tensor], told: str = "") -> str:
    """Return the SHA-256 of weights on the CPU, with their names, types and shapes, and of a text."""
    digest = hashlib.sha256(told.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
