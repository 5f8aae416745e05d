"""`python -m regraft VERB ...`: the command line, also for `torchrun -m regraft`."""

import os
import sys

from regraft.cli.main import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A thread of torch's gloo may let go of its last tensor only now; in an interpreter that is being taken down
        # it would abort the process (ConcretePyInterpreterVTable::decref waits for the GIL, torch 2.13).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
