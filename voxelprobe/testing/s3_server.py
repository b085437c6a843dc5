"""A real S3 server in this process: moto's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Give the address, host and port, of a server on loopback; it takes any key and holds what it has in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()
        if server._server is not None:  # its socket, which `stop` leaves open
            server._server.server_close()
