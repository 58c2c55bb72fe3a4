"""ResNet-50 in ONNX Runtime against eager PyTorch on the CPU, as many threads each.

Run: python -m benchmarks.export
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.ratio import interleaved, table

SIZE, TARGET = 224, 1.4


def main() -> None:
    """Time both, print the table."""
    import onnxruntime
    import timm

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    model = timm.create_model("resnet50", num_classes=1).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    timings = []
    with tempfile.TemporaryDirectory(prefix="fakedet-benchmark-") as name, torch.inference_mode():
        path = Path(name) / "resnet50.onnx"
        batch = torch.export.Dim("batch", min=1, max=4096)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            traced = torch.export.export(model, (torch.rand(2, 3, SIZE, SIZE),), dynamic_shapes=({0: batch},))
            torch.onnx.export(traced, dynamo=True, verbose=False).save(str(path))  # type: ignore[union-attr]
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        for count in (1, 8):
            images = torch.rand(count, 3, SIZE, SIZE)
            given = {entry.name: images.numpy()}
            assert np.abs(session.run(None, given)[0] - model(images).numpy()).max() < 1e-4

            def ours(given: dict[str, np.ndarray] = given) -> None:
                session.run(None, given)

            def eager(images: torch.Tensor = images) -> None:
                model(images)

            timings.append(interleaved(f"ResNet-50, {count} at a time", ours, eager, count, 9))
    print(table("ONNX Runtime against eager PyTorch", timings, TARGET))


if __name__ == "__main__":
    main()
