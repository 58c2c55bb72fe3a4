"""How the score of photographs changes when they are compressed: a table made with pandas.

python examples/compression_table.py [OUTPUT.csv]
"""

import io
import sys

import pandas as pd
from PIL import Image
from skimage import data

import fakedet

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def saved(name: str, quality: int) -> bytes:
    """Save a bundled photograph as JPEG and return the file's bytes."""
    content = io.BytesIO()
    Image.fromarray(getattr(data, name)()).save(content, "JPEG", quality=quality)
    return content.getvalue()


cases = pd.DataFrame([(name, quality) for name in NAMES for quality in (95, 75, 50)], columns=["photo", "quality"])
files = [saved(row.photo, row.quality) for row in cases.itertuples()]

detector = fakedet.load("demo")
table = pd.concat([cases, detector.predict(files, views=[], tiles=4)], axis=1)
print(table.pivot(index="photo", columns="quality", values="score").round(3).to_string())
print(table.pivot(index="photo", columns="quality", values="verdict").to_string())
if len(sys.argv) > 1:
    table.to_csv(sys.argv[1], index=False)
