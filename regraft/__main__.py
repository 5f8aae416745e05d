"""`python -m regraft VERB ...`: the command line, also for `torchrun -m regraft`."""

import sys

from regraft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
