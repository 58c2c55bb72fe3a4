"""The console command ``fakedet``: one verb per job, each a Hydra application."""

from __future__ import annotations

import os
import signal
import sys

import fakedet
from fakedet.errors import UserError, nearest
from fakedet.shipped import DEFAULT, require_shipped

VERBS = {
    "index": "write the manifest of a folder of images, in any known layout",
    "fetch": "download a data set, resumed where it stopped and checked by hash",
    "audit": "find what a detector could cheat on in a manifest, before training on it",
    "match": "bring reals and fakes to one format, size and compression",
    "shard": "write a manifest's images into shards, for object stores and many nodes",
    "train": "train a detector (model=ntf, a baseline), or stage 1 alone (model=ntf_stage1)",
    "resume": "go on with a run that was stopped, in its folder",
    "evaluate": "score a manifest with a checkpoint: predictions.parquet and metrics.json",
    "benchmark": "score a public benchmark by its protocol, beside the published figures",
    "report": "rebuild tables, figures and the page from predictions files alone",
    "compare": "gather the runs of a sweep into one table and page",
    "predict": "classify images as real, fake or undecided",
    "serve": "open a page on which images are dropped and judged",
    "export": "write a detector as ONNX or torch.export, with all that is needed to use it",
    "study": "train several methods on the same splits and seeds and compare them in one report",
}

# Names the job that the processes which Lightning starts for further ranks join; see docs/architecture.md.
JOB = "FAKEDET_JOB"

HELP = """fakedet: detect AI-generated images by the natural traces that real photographs share.

usage: fakedet <verb> [key=value ...]

verbs:
{verbs}

Every verb is a Hydra app: `fakedet <verb> --help` shows its config, `-m key=a,b` sweeps,
`--cfg job` prints the composed config, `--config-dir DIR` adds your own configs.
"""


def _end_at_once(number: int, _: object) -> None:
    # An exception could be taken for a failed import, or turned into one.
    os.write(2, b"fakedet: interrupted\n")
    os._exit(128 + number)


def main() -> int:
    """Run the verb that the command line names and return its exit status."""
    if JOB in os.environ and os.environ.get("LOCAL_RANK") not in (None, "", "0"):
        from fakedet.cli.app import join

        return join(os.environ[JOB])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)  # until everything is imported, which takes seconds
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())))
        return 0 if arguments else 2
    verb = arguments[0]
    if verb in ("-V", "--version"):
        print(f"fakedet {fakedet.__version__}")
        return 0
    if verb not in VERBS:
        print(f"fakedet: '{verb}' is not a verb; {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    given = dict(word.partition("=")[::2] for word in arguments[1:])
    if verb in ("predict", "serve") and not any(word.startswith(("-", "detector")) for word in given):
        try:
            require_shipped(given.get("checkpoint", DEFAULT), given.get("backbone"))
        except UserError as error:
            print(f"fakedet: {error}", file=sys.stderr)
            return 2
    # Imported late: Hydra and PyTorch take seconds that `fakedet --help` need not.
    from fakedet.cli.app import launch

    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return launch(verb, arguments[1:])
    except BrokenPipeError:
        # The reader of the output, such as head, closed it; the flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
