"""Train a baseline (cross-entropy) on the embedded demo data for a few steps, load it and score an image.

python examples/train_baseline.py OUTPUT_FOLDER
"""

import sys

from skimage import data

import fakedet

# The same as: fakedet train model=bce data=demo trainer.max_epochs=1 ...
# A whole training takes the default number of steps: leave the limits out.
run = fakedet.train(
    model="bce",
    data="demo",
    trainer__max_epochs=1,
    trainer__limit_train_batches=5,
    trainer__limit_val_batches=2,
    trainer__limit_test_batches=2,
    bootstrap__resamples=20,
    header_audit=False,
    output_dir=sys.argv[1],
)
print("checkpoint", run.checkpoint)
if run.metrics is not None:
    print("mAP on the test split", run.metrics["map"]["value"])

detector = run.load()
print("logit of a photograph", detector.predict(data.astronaut()).logit)
