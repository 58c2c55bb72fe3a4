"""How long a user waits for help, for a config, and for the refusal of a mistake; a bare interpreter beside them.

Run: python -m benchmarks.startup
"""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.ratio import interleaved, table

CASES = {
    "fakedet --help": ["--help"],
    "fakedet train --help": ["train", "--help"],
    "fakedet train --cfg job": ["train", "--cfg", "job"],
    "fakedet train modle=bce (a mistake)": ["train", "modle=bce"],
}


def main() -> None:
    """Time each against an interpreter that does nothing, print the table."""

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=dict(os.environ))

    timings = [
        interleaved(name, lambda a=arguments: run("-m", "fakedet", *a), lambda: run("-c", ""), 1, 5)
        for name, arguments in CASES.items()
    ]
    print(table("to the prompt again, against an empty interpreter; at most 2,000 ms", timings, None))


if __name__ == "__main__":
    main()
