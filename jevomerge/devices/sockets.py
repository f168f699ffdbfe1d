"""No way out: what `--offline` promises."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from jevomerge.errors import InputError

# What libraries are told, so that they look into their caches and do not ask.
TOLD = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}
NETWORK = (socket.AF_INET, socket.AF_INET6)
LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
USES = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")


def forbid() -> None:
    """Let this process, from now on and for good, neither connect nor bind to the network nor look up a name there.

    Sockets between processes of this machine that have no address in a network are let through. It is for Python's
    sockets (an audit hook, PEP 578); compiled code that opens its own is not seen, and what is known to is refused
    by name where it would begin.
    """
    os.environ.update(TOLD)
    sys.addaudithook(_watch)


def _watch(event: str, details: tuple[Any, ...]) -> None:
    if event in LOOK_UPS or (event in USES and details[0].family in NETWORK):
        where = details[0] if event in LOOK_UPS else details[1]
        raise InputError(f"--offline: something wants to reach {where}; give what it is looking for as local files")
