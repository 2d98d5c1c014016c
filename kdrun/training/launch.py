"""Start of processes on this machine that train one run together, if torchrun has not started them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from kdrun.data.processes import ShieldedContext
from kdrun.hardware import environment


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def meeting_place(count: int) -> dict[str, str]:
    """Return the environment through which `count` processes of this machine connect to each other."""
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }


def start(count: int, work: Callable[..., None], *arguments: Any, context: Any = None) -> list[Any]:
    """Start `count` processes that call `work(*arguments)`, and return them; each reads its number from its
    environment."""
    shared = {
        **meeting_place(count),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns if find_unused_parameters finds none
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # as in torchrun
    }
    processes = [(context or ShieldedContext()).Process(target=work, args=arguments) for _ in range(count)]
    for rank, process in enumerate(processes):
        with environment({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}):
            process.start()
    return processes
