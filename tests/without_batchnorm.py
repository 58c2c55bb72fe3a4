"""The command line with layer instead of batch normalisation in its heads, for tests of several ranks on CPUs.

Batch statistics are each rank's own there, so no result could equal that of one process.
"""

import torch

from fakedet.cli import main

if __name__ == "__main__":
    torch.nn.BatchNorm1d = torch.nn.LayerNorm
    main()
