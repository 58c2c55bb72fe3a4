"""AP per generator, with intervals, from arrays of labels and scores that any program made.

python examples/evaluate_scores.py
"""

import numpy as np

import fakedet

rng = np.random.default_rng(0)
labels = np.repeat([0, 1, 1], 200)  # 0 = real, 1 = fake
generators = np.repeat(["photographs", "sdxl", "flux"], 200)
# One generator is easy to detect, the other is hard.
logits = rng.normal(size=600) + np.repeat([-1.0, 2.0, -0.5], 200)
# Images that come from one photograph or prompt are drawn together by the bootstrap behind the intervals.
groups = np.arange(600) // 2

measured = fakedet.average_precision(labels, logits, generators, groups=groups, seen=["sdxl"], resamples=200)
print(measured.to_frame().round(3).to_string())
print("AP on flux:", measured.generators["flux"].ap.text())
