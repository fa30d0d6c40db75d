"""The HTTP gateway: where it listens, who may call, and the entry of its process.

The listening socket belongs to the runtime, so a gateway that dies refuses nobody: connections wait in the
backlog for its successor. The runtime imports this module for the address; the server library is loaded in
the gateway's own process only.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import stat
import sys
from typing import Any, Final

from orun.errors import OrunError, UsageError

_BACKLOG: Final = 1024
_TOKEN_BYTES_MIN: Final = 16

_log = logging.getLogger("orun.gateway")


def check_address(http: str, token_file: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises UsageError for an address that is open to others without a token."""
    host, separator, port_text = http.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"
    if not separator or not port_text.isdecimal() or int(port_text) > 65535:
        raise UsageError(
            f"{http!r} is not an address for the gateway", hint="write HOST:PORT, for example 127.0.0.1:4000"
        )
    port = int(port_text)
    if token_file:
        read_token(token_file)
    elif not all(ipaddress.ip_address(address).is_loopback for address in _resolve(host, port)):
        raise UsageError(
            f"{http} can be reached from other machines, and no token is set",
            hint="name a file that holds a token with --token-file, or use 127.0.0.1",
        )
    return host, port


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"the gateway's host {host!r} is unknown: {error.strerror}") from error
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def read_token(token_file: str) -> str:
    """The bearer token in a file. Raises UsageError for a file that cannot serve; warns when others may read it."""
    try:
        with open(token_file, encoding="ascii") as file:
            token = file.read(4096).strip()
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"the token file {token_file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the token file {token_file} is not plain text") from error
    if len(token) < _TOKEN_BYTES_MIN or not token.isprintable() or " " in token:
        raise UsageError(
            f"the token file {token_file} must hold one word of at least {_TOKEN_BYTES_MIN} characters",
            hint=f"make one with: openssl rand -hex 32 > {token_file}",
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("the token file %s can be read by others; chmod 600 it", token_file)
    return token


def bind(host: str, port: int) -> socket.socket:
    """A listening socket for the gateway; port 0 finds a free one."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OrunError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror}",
            hint="take another port, or 0 for a free one",
        ) from error
    return sock


def main(args: dict[str, Any], fds: dict[str, int]) -> None:
    """Serve until SIGTERM, then finish what is under way and return.

    ``args``: ``state_dir``, ``control`` (socket path), ``agents`` (as in runtime.json), and optionally ``token``,
    ``body_bytes_max``, ``concurrency_max``, ``connections_max``, ``timeout_s``, ``grace_s`` and ``patience``
    (see gateway_http.Patience).
    ``fds``: ``listen``, and optionally ``ready``, to which one byte is written once connections are accepted.
    """
    import asyncio

    from orun.runtime.gateway_server import serve

    asyncio.run(serve(args, fds))


def _by_hand(argv: list[str]) -> None:
    """``python -m orun.runtime.gateway STATE_DIR HOST:PORT [TOKEN_FILE]``: a gateway beside a running runtime."""
    from orun.project import read_runtime

    state_dir, http, *rest = argv
    token_file = rest[0] if rest else ""
    listening = bind(*check_address(http, token_file))
    document = read_runtime(state_dir)
    args = {"state_dir": state_dir, "control": document["control"], "agents": document["agents"]}
    if token_file:
        args["token"] = read_token(token_file)
    main(args, {"listen": listening.detach()})


if __name__ == "__main__":
    _by_hand(sys.argv[1:])
