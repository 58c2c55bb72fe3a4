"""Detectors on the Hugging Face hub: hf://OWNER/NAME holds detector.safetensors and its model card, README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakedet.errors import UserError, one_line
from fakedet.shipped import unreachable

PREFIX = "hf://"
FILE = "detector.safetensors"


def repository_of(name: str) -> tuple[str, str | None]:
    """Read hf://OWNER/NAME or hf://OWNER/NAME@REVISION; UserError for another form."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?", name)
    if found is None:
        raise UserError(f"{name}: a detector on the Hugging Face hub is named hf://OWNER/NAME, or "
                        "hf://OWNER/NAME@REVISION")  # fmt: skip
    return found[1], found[2]


def fetch(name: str) -> Path:
    """Fetch a detector from the hub into its cache, or find it there, and return the file.

    Raises:
        UserError: another form of the name, no such repository or file in it, or no answer and no copy in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = repository_of(name)
    why = unreachable()  # else the client would try for half a minute
    try:
        return Path(hf_hub_download(repository, FILE, revision=revision, local_files_only=bool(why)))
    except LocalEntryNotFoundError as error:
        raise UserError(f"{name} is not in the hub's cache, and the hub does not answer ({why or 'no network'}). On a "
                        f"machine with a network, fetch {FILE} of it, and pass checkpoint=FILE") from error  # fmt: skip
    except Exception as error:  # whatever the hub's client and the network raise
        raise UserError(f"{name}: the hub has no {FILE} there that can be read: {one_line(error)[:200]}") from error


def push(name: str, file: Path, card: str, metrics: Mapping[str, Any] | None, licence: str, private: bool) -> str:
    """Upload a detector and its model card to the hub, and return the address of the commit.

    Args:
        name: hf://OWNER/NAME; the repository is made if it is not there.
        file: a .safetensors file that `fakedet export` wrote.
        card: its model card in Markdown.
        metrics: content of metrics.json, whose means are given in the hub's own form; None: none.
        licence: an identifier of the hub's list, such as "cc-by-nc-sa-4.0", or "other".
        private: whether a new repository is private.

    Raises:
        UserError: another form of the name, no token or no right to write, or no answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repository, revision = repository_of(name)
    content = f"---\n{_card_data(repository, metrics, licence)}\n---\n\n{card}"
    try:
        api = HfApi(library_name="fakedet")
        api.create_repo(repository, exist_ok=True, private=private)
        added = [CommitOperationAdd(FILE, str(file)), CommitOperationAdd("README.md", content.encode())]
        return str(
            api.create_commit(repository, added, commit_message="Upload a detector", revision=revision).commit_url
        )
    except Exception as error:  # whatever the hub's client and the network raise
        raise UserError(f"{name} cannot be written: {one_line(error)[:300]}; `hf auth login` stores a token") from error


def _card_data(repository: str, metrics: Mapping[str, Any] | None, licence: str) -> str:
    """Write the hub's metadata: licence, library, tags and, of each mean, its value, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for kind, words in (("_seen", "generators of training"), ("_unseen", "generators not in training"), ("", "all")):
        for key, name in (("map", "mean AP"), ("mauc", "mean AUC")):
            value = (metrics or {}).get(f"{key}{kind}") or {}
            if value.get("value") is not None:
                told = f"{name} [95 % interval {value['low']:.3f}, {value['high']:.3f}]"
                results.append(EvalResult(
                    "image-classification", "fakedet-manifest", f"test split, {words}",
                    {"map": "average_precision", "mauc": "roc_auc"}[key], round(value["value"], 4), metric_name=told,
                    dataset_config=kind.removeprefix("_") or "all",
                ))  # fmt: skip
    data = ModelCardData(
        license=licence, library_name="fakedet", pipeline_tag="image-classification",
        tags=["ai-generated-image-detection", "image-forensics"],
        model_name=repository.partition("/")[2] if results else None, eval_results=results or None,
    )  # fmt: skip
    return str(data)
