"""Imports everything once, then forks one training process per line on stdin: a kill costs no new start-up.

Prints each child's process id, and its wait status when it has ended.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:

    import kdrun.commands.session
    import kdrun.fit
    import kdrun.models.zoo
    import kdrun.report.curves  # noqa: F401
    from kdrun.cli import main as command

    sync = os.fsync

    def slow_sync(handle: int) -> None:
        """A slow disk, so that a random moment often lies inside a save."""
        time.sleep(0.01)
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
