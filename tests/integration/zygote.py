"""Imports everything once, then forks one training process per line on stdin: a kill costs no new start-up.

Prints each child's process id, and its wait status when it has ended.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

# torch.optim imports torch._dynamo at its first step; a child that did so would spend its short life on it.
USED = (
    "kdrun.training.session",
    "kdrun.training.trainer",
    "kdrun.models.zoo",
    "kdrun.runs.curves",
    "hydra",
    "safetensors.torch",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
)


def main() -> None:
    from kdrun.cli import main as command

    for name in USED:
        importlib.import_module(name)

    sync = os.fsync

    def slow_sync(handle: int) -> None:
        """A slow disk, so that a random moment often lies inside a save."""
        time.sleep(0.03)
        sync(handle)

    os.fsync = slow_sync
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(command(line.split()))
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
