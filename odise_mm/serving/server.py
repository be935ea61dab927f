"""Starting and stopping the web server."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import Any

from odise_mm.errors import ConfigError, OutputError

PACKAGES = {
    "fastapi": "fastapi",
    "fastapi_offline": "fastapi-offline",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "uvicorn": "uvicorn",
}
"""Modules of the API's packages, and how pip names them."""
PAGE_PACKAGES = {"gradio": "gradio", "uvicorn": "uvicorn"}
"""The same for the web page."""


def check_packages(api: bool = True) -> None:
    """Check that the packages of the API, or of the web page, are installed.

    Raises:
        ConfigError: If one is missing.
    """
    packages = PACKAGES if api else PAGE_PACKAGES
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        what, extra = ("--api", "api") if api else ("the web page", "web")
        raise ConfigError(f"{what} needs {', '.join(missing)}: pip install 'odise_mm[{extra}]'")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        OutputError: If the address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as err:
        raise OutputError(
            f"cannot listen on {host}, port {port} ({err.strerror or err}); choose another --host "
            "or --port"
        ) from err


def serve(app: Any, bound: socket.socket, timeout: float) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered first.

    Args:
        app: ASGI application.
        bound: Socket to accept connections from.
        timeout: Seconds to wait for requests that have begun.

    Raises:
        KeyboardInterrupt: After a signal, when everything has ended.
    """
    import uvicorn

    host, port = bound.getsockname()[:2]
    print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    config = uvicorn.Config(
        app,
        timeout_graceful_shutdown=max(1, round(timeout)),
        server_header=False,
        access_log=False,  # the metrics count requests
    )
    uvicorn.Server(config).run(sockets=[bound])
