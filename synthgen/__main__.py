"""`python -m synthgen`, and so `accelerate launch -m synthgen` and `torchrun -m synthgen`."""

import sys

from synthgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
