"""A data module of one's own: the images of a manifest, each mirrored upside down."""

import cv2
import numpy as np

from fakedet.data.datamodule import ImageDataModule


class UpsideDown(ImageDataModule):
    """fakedet's data module over other bytes: what ``read_bytes`` returns is what all its images are made of."""

    def read_bytes(self, row: int) -> bytes:
        """Return the bytes of a manifest row's image, turned upside down, as PNG."""
        image = cv2.imdecode(np.frombuffer(super().read_bytes(row), np.uint8), cv2.IMREAD_COLOR)
        return cv2.imencode(".png", image[::-1])[1].tobytes()
