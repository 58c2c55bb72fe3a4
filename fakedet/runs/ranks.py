"""Which of a job's processes this one is, before and after Lightning has set them up."""

from __future__ import annotations

import os

# Lightning's own launcher sets LOCAL_RANK and NODE_RANK, torchrun RANK and LOCAL_RANK, SLURM SLURM_PROCID.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")


def is_main_process() -> bool:
    """Say whether this process is rank zero."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def start_name() -> str | None:
    """Name this start of a job whose processes are all started from outside (srun, torchrun); None for others.

    All processes of the start give the same name, and those of a requeued job another one.
    """
    if int(os.environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in os.environ:
        return f"slurm-{os.environ.get('SLURM_JOB_ID')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        environ = os.environ
        return f"torchrun-{environ['TORCHELASTIC_RUN_ID']}-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return None


def was_requeued() -> bool:
    """Say whether SLURM started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
