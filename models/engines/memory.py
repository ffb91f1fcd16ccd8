"""Memory of the `hf` engine: how much there is to spend, and what happens when it runs out."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def spare_bytes(device: torch.device) -> int:
    """Bytes that keys and values may take where nobody said: 60 % of what a GPU has left, an eighth of main memory."""
    if device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


def attempt(work: Callable[[], None]) -> str | None:
    """Do something that may not fit into memory; returns what was said if it did not.

    Whoever tries again does so after this has returned: inside `except` the failed pass would still hold its memory.
    """
    try:
        work()
    except Exception as error:
        if not out_of_memory(error):
            raise
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in ("DefaultCPUAllocator", "out of memory"))


def no_memory(why: str, tokens: int) -> str:
    """What to tell who asked for a row that does not fit alone."""
    return f"out of memory with a single row of {tokens} tokens; use a smaller model, dtype or context ({why})"
