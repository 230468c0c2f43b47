"""The caches of this CPU, for benchmarks in virtual environments without the C++ build."""

from pathlib import Path


def last_level_bytes() -> int:
    """Of the largest cache that the system tells of; 32 MiB where it tells of none."""
    sizes = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=32 << 20)
