"""Ask Ignite how many processes there are."""

from __future__ import annotations

import ignite.distributed as idist

__all__: list[str] = []


def require_one_process() -> None:
    """Refuse to run on several processes, which this version does not support.

    Raises:
        NotImplementedError: If the world size is not 1.
    """
    world_size = idist.get_world_size()
    if world_size != 1:
        raise NotImplementedError(
            f"this version of ignite-evalhook evaluates on one process, and there are {world_size}"
        )
