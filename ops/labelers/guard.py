"""Run a shell command that must not outlive who asked for it: `guard.py PARENT COMMAND`.

This process leads a session of its own; the command and all it starts belong to its process
group. Once process PARENT is gone, whatever killed it, the group is ended. Nothing of the
package is imported, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

POLL = 0.2
"""Seconds between two looks at the parent."""
GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL to the group."""


def main() -> int:
    """Return the command's exit code, 128 + n if it was ended by signal n."""
    parent = int(sys.argv[1])
    child = subprocess.Popen(sys.argv[2], shell=True, stdin=subprocess.DEVNULL)
    while True:
        try:
            code = child.wait(POLL)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.killpg(0, signal.SIGTERM)
                time.sleep(GRACE)
                os.killpg(0, signal.SIGKILL)
            continue
        return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
