"""How many CPU cores there are for this process."""

import os


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores(world: int) -> int:
    """Cores for each process of this machine, of `world` in all, if torchrun does not say how many run here."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
