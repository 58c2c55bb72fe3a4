"""Keep libraries from talking over what matters."""

from __future__ import annotations

import logging
import warnings

# What is silenced, and why it says nothing to the user.
SILENCED = (
    # The frozen source of stage 2 stays in evaluation mode: that is what freezing its batch statistics means.
    r".*module\(s\) in eval mode at the start of training.*",
    # Lightning's own use of a PyTorch name that PyTorch has renamed.
    r".*isinstance\(treespec, LeafSpec\).*",
    # How many workers are best is the user's to say; on small data none is.
    r".*does not have many workers.*",
    # Fewer steps an epoch than log_every_n_steps: the epoch's end is logged in any case.
    r".*The number of training batches .* is smaller than the logging interval.*",
    # The folder was opened by us; that stage 1 left files below it is intended.
    r".*Checkpoint directory .* exists and is not empty.*",
    # Metrics are reduced by our own metric, which every rank computes alike.
    r".*It is recommended to use `self.log.*sync_dist=True.*",
    # Evaluation shares the rows out without padding; our metric counts each row once.
    r".*Using `DistributedSampler` with the dataloaders.*",
    # Our sampler begins at the step where the run was stopped; Lightning looks for another way of saying so.
    r".*your dataloader is not resumable.*",
    # A resumed run's curves are written back from its resume point.
    r".*Experiment logs directory .* exists and is not empty.*",
    # One process outside of srun is what was asked for.
    r".*The `srun` command is available on your system but is not used.*",
)


def quiet_libraries() -> None:
    """Leave Lightning's log to warnings, and hide the warnings that :data:`SILENCED` explains.

    Call it after Lightning was imported: the import sets its own level.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)
