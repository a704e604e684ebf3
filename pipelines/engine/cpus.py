"""How many CPUs there are to work on."""

from __future__ import annotations

import math
import os
from pathlib import Path

# of cgroup v2, as a container sees its own: "MICROSECONDS PERIOD" or "max ..."
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cpus() -> int:
    """CPUs that this process may use: those of its affinity mask, less where its container has a
    quota; at least 1.
    """
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = QUOTA.read_text().split()
        return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2 here
        return count
