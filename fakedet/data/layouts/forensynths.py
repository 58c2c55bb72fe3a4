"""ForenSynths, as CNNDetection and AIGCDetectBenchmark lay it out (Wang et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from fakedet.data.layouts.base import SPLITS, Layout, Parts, Place

LABELS = {"0_real": 0, "1_fake": 1}
# CNNDetection's train and val hold ProGAN alone, in a folder for each of these classes of LSUN.
PROGAN_CLASSES = {
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
}  # fmt: skip


class ForenSynths(Layout):
    """``[train|val|test/]<generator>/[class/]{0_real,1_fake}``; a generator's reals stand beside it."""

    name: ClassVar[str] = "forensynths"
    tree: ClassVar[str] = "[train|val|test/]<generator>/[class/]{0_real,1_fake}"

    def place(self, parts: Parts) -> Place | None:
        """Say what a folder holds."""
        position = next((at for at, part in enumerate(parts) if part.lower() in LABELS), None)
        if position is None:
            return None
        label, above = LABELS[parts[position].lower()], parts[:position]
        split = ""
        # Only the first folder can be a split: "train" is also one of ProGAN's classes.
        if above and above[0].lower() in SPLITS:
            split, above = SPLITS[above[0].lower()], above[1:]
        elif above and above[0].lower().endswith(("_train", "_val", "_test")):
            split = above[0].lower().rsplit("_", 1)[1]
            above = (above[0].rsplit("_", 1)[0], *above[1:])
        if not above:
            return Place(label, self.root, "", split)
        if len(above) == 1 and split in ("train", "val") and above[0].lower() in PROGAN_CLASSES:
            return Place(label, "progan", above[0], split)
        # Below the generator stands the class, if anything does.
        return Place(label, above[0], "/".join(above[1:]), split)
