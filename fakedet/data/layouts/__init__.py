"""The folder trees that datasets come in: which class, generator, source and split a folder holds."""

from __future__ import annotations

from fakedet.data.layouts.base import Folders, Layout, Place
from fakedet.data.layouts.diffusion_forensics import DiffusionForensics
from fakedet.data.layouts.drct import Drct
from fakedet.data.layouts.forensynths import ForenSynths
from fakedet.data.layouts.generators import Generators
from fakedet.data.layouts.genimage import GenImage
from fakedet.data.layouts.plain import Plain
from fakedet.data.layouts.universal_fake_detect import UniversalFakeDetect

LAYOUTS: dict[str, type[Layout]] = {
    # From the most to the least particular: the first that places all images is taken.
    layout.name: layout
    for layout in (UniversalFakeDetect, ForenSynths, GenImage, DiffusionForensics, Drct, Plain, Generators)
}

__all__ = ["LAYOUTS", "Folders", "Layout", "Place"]
