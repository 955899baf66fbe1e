"""A process that ends with its parent. Imported by each kernel of a study, so nothing heavy stands here."""

import os
import signal
import sys


def die_with_parent(parent: int) -> None:
    """End this process when its parent (a process id) ends, however: nothing may train on beside the next attempt.

    Linux does it at once; a kernel that looks after its parent itself does so only while it gets to run Python code.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # too late for the signal
        os._exit(1)
