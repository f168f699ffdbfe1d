"""`python -m jevomerge`."""

import sys

from jevomerge.cli import main

sys.exit(main())
