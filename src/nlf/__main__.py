"""`python -m nlf`: the form that `torchrun` and `accelerate launch` start in every process."""

import sys

from nlf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
