"""Refuse settings of a data module that no run could use."""

from __future__ import annotations

from fakedet.data.crop import POLICIES
from fakedet.data.loader import check_workers
from fakedet.data.match import Matcher
from fakedet.errors import UserError, choose

OPTIONAL = ("steps_per_epoch", "max_train_reals")


def check_settings(
    eval_policy: str, num_workers: int, max_quarantine: float, matcher: Matcher | None, **sizes: int | None
) -> None:
    """Check the settings of :class:`fakedet.data.datamodule.ImageDataModule`.

    Raises:
        UserError: the first that is out of range, with what would be valid.
    """
    for name, size in sizes.items():
        if size is None and name in OPTIONAL:
            continue
        if not isinstance(size, int) or size < 1:
            raise UserError(f"data.{name}={size}: must be a whole number, at least 1")
    check_workers(num_workers)
    choose(eval_policy, POLICIES, "data.eval_policy")
    if not 0 <= max_quarantine <= 1:
        raise UserError(f"data.max_quarantine={max_quarantine}: must be a share between 0 and 1")
    crop = sizes["crop_size"] or 0
    if matcher is not None and matcher.size < crop:
        raise UserError(
            f"data.crop_size={crop} is larger than data.match.size={matcher.size}; crops are cut from matched images"
        )
