"""Classify the images in a folder as real, fake or undecided.

python examples/predict_folder.py FOLDER [CHECKPOINT]
"""

import sys

import fakedet

folder = sys.argv[1]
# Without CHECKPOINT, the detector that comes with fakedet; "demo" is no use for real cases.
detector = fakedet.load(*sys.argv[2:])
print(detector)

table = detector.predict(folder)
print(table[["path", "verdict", "score", "p_value", "reason"]].to_string(index=False))
print(table["verdict"].value_counts(dropna=False).to_string())

for row in table[table["error"].notna()].itertuples():
    print(f"{row.path} cannot be read: {row.error}")
