"""The number of CPUs for workers."""

from __future__ import annotations

import math
import os
from pathlib import Path

# the quota of cgroup v2, as the container sees it: "MICROSECONDS PERIOD" or "max ..."
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1: those of its affinity mask,
    or fewer where its container has a quota.
    """
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = QUOTA.read_text().split()
        return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2 here
        return count
