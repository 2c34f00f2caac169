"""`python -m nlf`: for `torchrun` and `accelerate launch`, which start a module in every process."""

import sys

from nlf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
