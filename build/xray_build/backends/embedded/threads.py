"""Threads of an engine's instances on this machine. Copied beside the `model.py` of every version.

Free of imports from the project: a version keeps working whatever is installed.
"""

import os


def threads_of_instance(instances: int, configured: int = 0) -> int:
    """Number of threads of each instance; 0 = the engine's own choice.

    Args:
        instances: Number of instances of the model.
        configured: Number given by the configuration; 0 = an equal share of the cores, because more threads than
            cores would only wait for one another.
    """
    if configured or instances == 1:
        return configured
    return max(1, len(os.sched_getaffinity(0)) // instances)


def may_spin(instances: int, threads: int) -> bool:
    """Tell if waiting threads may spin: only where no other instance needs their cores."""
    return instances * threads <= len(os.sched_getaffinity(0))
