"""A data module of one's own: the images of a manifest, each turned upside down."""

import cv2
import numpy as np

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.sources import Source


class UpsideDownSource:
    """Another source's images, turned upside down; anything that has ``read`` is a source.

    Args:
        source: gives the bytes of an image file by its row in the manifest.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def read(self, row: int) -> bytes:
        """Return the bytes of a row's image as PNG."""
        image = cv2.imdecode(np.frombuffer(self.source.read(row), np.uint8), cv2.IMREAD_COLOR)
        return cv2.imencode(".png", image[::-1])[1].tobytes()


class UpsideDown(ImageDataModule):
    """fakedet's data module over other bytes: what the source returns is what all its images are made of."""

    def make_source(self) -> UpsideDownSource:
        """Return what reads the bytes of a row."""
        return UpsideDownSource(super().make_source())
