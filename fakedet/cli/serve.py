"""`fakedet serve`: a page on which images are dropped and judged, and the same by HTTP for programs.

This is the command; server.py holds the application, which FastAPI and uvicorn serve.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket

from omegaconf import DictConfig

from fakedet.cli.predict import open_detector
from fakedet.errors import UserError
from fakedet.utils import threads

log = logging.getLogger("fakedet")

PORTS = range(7860, 7960)  # tried for port=0
CONNECTIONS = 256  # open at a time; others are refused
ENDING = 30  # seconds that requests under way have to finish when the server is told to end


def run_serve(config: DictConfig, overrides: list[str]) -> None:
    """Serve until interrupted or told to end (SIGTERM); requests under way are answered first."""
    host, token = str(config.host), str(config.token or os.environ.get("FAKEDET_TOKEN") or "")
    try:
        alone = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(f"host={host}: an IP address of this machine, such as 127.0.0.1") from error
    if not 0 <= config.port <= 65535:
        raise UserError(f"port={config.port}: 0 (any free one) or 1 to 65535")
    for address in config.proxy:
        _check_network(str(address))
    if not alone and not token:
        log.warning("host=%s: other machines can reach the page; it has no password and no encryption; token= or "
                    "FAKEDET_TOKEN sets a password", host)  # fmt: skip
    try:
        import uvicorn

        from fakedet.cli.server import Limits, make_app
    except ImportError as error:
        raise UserError(f"fakedet serve needs FastAPI ({error}): pip install 'fakedet[serve]'") from error
    detector, rules = open_detector(config, "batch_size", "max_mb", "files", "per_minute", "queue", "memory_mb")
    detector.memory_mb = config.memory_mb
    limits = Limits(config.max_mb, config.files, config.per_minute, config.queue)
    app = make_app(
        detector,
        rules,
        limits,
        config.batch_size,
        token,
        list(config.hosts),
        config.root_path,
        config.heatmap_tiles,
        config.prior,
    )
    with threads(config.threads), _listen(host, config.port) as listening:
        shown = f"[{host}]" if ":" in host else host
        log.info("the page is at http://%s:%d/ (Ctrl-C ends it)", shown, listening.getsockname()[1])
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn's own handler ends it; this one is called at the end
        uvicorn.Server(uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=bool(config.proxy), forwarded_allow_ips=[str(address) for address in config.proxy],
            limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=ENDING,
        )).run([listening])  # fmt: skip


def _check_network(address: str) -> None:
    try:
        ipaddress.ip_network(address)
    except ValueError as error:
        raise UserError(f"proxy={address}: {error}; name addresses or networks, such as proxy=[127.0.0.1]") from error


def _listen(host: str, port: int) -> socket.socket:
    """Listen on a port, 0: the first free one of PORTS; UserError if it is taken or the host is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = [port] if port else [*PORTS]
    for number in ports:
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if number == ports[-1]:
                raise UserError(f"host={host} port={port} cannot be listened on: {error}; choose another port"
                                ) from error  # fmt: skip
    raise AssertionError("there are no ports")
