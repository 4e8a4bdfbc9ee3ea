"""How much memory is free: what would not fit is refused before the work, in numbers."""

import os

SHARE = 0.5  # of the memory that is free, the most that one array may take


def free_memory() -> float:
    """Bytes of memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: what is free for sure is not told, so take a half
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def too_large(size: float) -> str:
    """What to say of an array of so many bytes, where it takes too large a share; else ""."""
    free = free_memory()
    if size <= SHARE * free:
        return ""
    return f"{size / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB that are free"
