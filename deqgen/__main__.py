"""``python -m deqgen``: the ``deqgen`` command."""

import sys

from deqgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
