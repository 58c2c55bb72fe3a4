"""Let ``python -m fakedet`` be the console command."""

import sys

from fakedet.commands import main

sys.exit(main())
