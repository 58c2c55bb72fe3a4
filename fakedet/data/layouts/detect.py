"""Tell which layout a folder has, or say what was seen there."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fakedet.data.layouts import LAYOUTS
from fakedet.data.layouts.base import Layout, Parts
from fakedet.errors import UserError, choose

ENOUGH = 0.9
"""Share of the images that a layout must place to be recognised; a dataset may hold a few strays."""
SHOWN = 12


def find_layout(name: str, root: str, images: Mapping[Parts, int], reals: Collection[str] = ()) -> Layout:
    """Choose the layout of a folder.

    Args:
        name: of a layout, or "auto" to recognise it.
        root: name of the folder.
        images: number of images in each folder below it.
        reals: see :class:`~fakedet.data.layouts.base.Layout`.

    Raises:
        UserError: no layout fits; the message lists the folders seen and the layouts there are.
    """
    if name != "auto":
        layout = LAYOUTS[choose(name, ["auto", *LAYOUTS], "layout")](root, images, reals)
        if _share(layout, images) == 0:
            raise UserError(
                f"layout={name}: no folder here is as it says ({layout.tree}). {_seen(images)}. Known layouts: "
                + _known()
            )
        return layout
    if reals:  # only this layout asks for them
        return find_layout("generators", root, images, reals)
    candidates = [kind(root, images, reals) for kind in LAYOUTS.values()]
    shares = [_share(layout, images) for layout in candidates]
    for layout, share in zip(candidates, shares, strict=True):
        if share >= ENOUGH:
            return layout
    nearest = max(zip(shares, candidates, strict=True), key=lambda pair: pair[0])
    close = f" {nearest[1].name} would place {nearest[0]:.0%} of the images." if nearest[0] > 0 else ""
    raise UserError(
        f"the layout of {root} cannot be told.{close} {_seen(images)}. Name it with layout=NAME, or say which "
        f"top folders hold real photographs with reals=[NAME,...]. Known layouts: {_known()}"
    )


def _share(layout: Layout, images: Mapping[Parts, int]) -> float:
    ours = {parts: count for parts, count in images.items() if not layout.aside(parts)}
    placed = {parts: place for parts in ours if (place := layout.place(parts)) is not None}
    return sum(images[parts] for parts in placed) / max(1, sum(ours.values()))


def _seen(images: Mapping[Parts, int]) -> str:
    listed = sorted(images.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{'/'.join(parts) or '.'} ({count} images)" for parts, count in listed[:SHOWN])
    more = f" and {len(listed) - SHOWN} more folders" if len(listed) > SHOWN else ""
    return f"Seen: {shown}{more}"


def _known() -> str:
    return "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS.values())
