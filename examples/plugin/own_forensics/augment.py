"""An augmentation of one's own."""

import numpy as np
from numpy.typing import NDArray


class Posterise:
    """Reduce a random crop to few levels of brightness, some of the time.

    Args:
        levels: of each channel.
        p: probability.
    """

    def __init__(self, levels: int = 8, p: float = 0.5) -> None:
        self.step, self.p = 256 // levels, p

    def __call__(self, crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Change a crop (H, W, 3); all randomness comes from ``rng``."""
        return crop // self.step * self.step if rng.random() < self.p else crop
