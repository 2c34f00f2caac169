"""Run a web application at an address until Ctrl-C, with a line for every mistake that a person can correct.

`nlf.serving.perspective` uses it; the application is any ASGI application.
"""

import contextlib
import errno
import importlib.util
import os
import socket
from typing import TYPE_CHECKING, Any

from nlf.errors import UserError

if TYPE_CHECKING:
    import uvicorn

EXTRA = ("fastapi", "uvicorn")  # what the extra `serve` of the package adds
GRACE = 5  # seconds that running requests get after Ctrl-C
WAITING = 2048  # connections that the system keeps until they are accepted


def check_installed(command: str) -> None:
    """Raise UserError if a package of the extra `serve` is missing.

    Args:
        command: What needs it, for the error.
    """
    if missing := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
        raise UserError(f"{command} needs {' and '.join(missing)}: run `pip install '.[serve]'` in the source of nlf")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Port 0 = any free port.

    Raises:
        UserError: the host is unknown, or the system refuses the address.
    """
    where = f"{host}, port {port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such host; give an address of this machine, such as 127.0.0.1") from error
    listener = socket.socket(family, kind)
    try:
        if os.name == "posix":  # a port is free again at once after its server has ended
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(WAITING)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen at {where}: {REASONS.get(error.errno or 0, error.strerror)}") from error
    return listener


REASONS = {
    errno.EADDRINUSE: "the port is in use; end the other server, or choose another --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host, such as 127.0.0.1",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "the system does not allow it; choose a --port from 1024"),
}


def url_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine can reach a listening socket."""
    host = listener.getsockname()[0]
    return host == "::1" or host.startswith("127.")


def server_of(app: Any) -> "uvicorn.Server":
    """A server of an application; it logs no requests, because their addresses hold keys."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    return uvicorn.Server(config)


def run(app: Any, listener: socket.socket) -> None:
    """Serve until Ctrl-C, then answer what is running and return. SIGTERM ends the process in the same way."""
    with contextlib.suppress(KeyboardInterrupt), listener:  # uvicorn raises the signal again at its end
        server_of(app).run(sockets=[listener])
