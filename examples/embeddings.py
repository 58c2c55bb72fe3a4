"""Embed photographs, and compare them by the cosine of the angle between their embeddings.

python examples/embeddings.py [OUTPUT.npz]
"""

import sys

import numpy as np
from skimage import data

import fakedet

NAMES = ("astronaut", "chelsea", "coffee", "rocket")

detector = fakedet.load("demo")
images = [getattr(data, name)() for name in NAMES]  # uint8 (H, W, 3)

embeddings = detector.embed(images)  # float32 (4, D), of the centre crop of each
directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
for name, row in zip(NAMES, directions @ directions.T, strict=True):
    print(f"{name:<10}", *(f"{cosine:6.2f}" for cosine in row))

if len(sys.argv) > 1:
    np.savez(sys.argv[1], names=NAMES, embeddings=embeddings)
