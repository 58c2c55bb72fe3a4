"""Let ``python -m fakedet`` be the console command."""

import sys

from fakedet.cli import main

sys.exit(main())
