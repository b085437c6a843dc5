"""The forms in which a chunked-graph server, and the proxy before it, answer."""

from __future__ import annotations

import datetime
import http.client
import json
import traceback
from dataclasses import dataclass, field

from voxelprobe.testing.faults import Fault

LOGIN_PATH = "/sticky_auth/api/v1/authorize"
HTML, JSON = "text/html; charset=utf-8", "application/json"
# Where a proxy's words are its own.
REASONS = {413: "Request Entity Too Large", 429: "Too Many Requests", 502: "Bad Gateway",
           503: "Service Temporarily Unavailable", 504: "Gateway Time-out"}


@dataclass(slots=True)
class Reply:
    """An answer, before faults and compression."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """Carries the answer to a call that can't be served."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def json_reply(status: int, value: object) -> Reply:
    """Return an answer in JSON; ids stay whole numbers of 64 bits."""
    return Reply(status, json.dumps(value, separators=(",", ":")).encode() + b"\n")


def html_reply(status: int) -> Reply:
    """Return the page that a proxy sends on its own."""
    reason = REASONS.get(status) or http.client.responses.get(status, "Error")
    page = (f"<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n<center><h1>{status} {reason}</h1>"
            "</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n")
    return Reply(status, page.encode(), HTML)


def login_reply(url: str) -> Reply:
    """Return the redirect to the login page of a server at `url`."""
    reply = html_reply(302)
    reply.headers["Location"] = f"{url}{LOGIN_PATH}?redirect={url}/"
    return reply


def failure_reply(error: Exception) -> Reply:
    """Return the server's answer to an exception of its own: JSON with a traceback."""
    return json_reply(500, {"timestamp": _now_text(), "duration": 1.0, "code": 500, "message": str(error),
                            "traceback": traceback.format_exception(error)})


def fault_reply(fault: Fault, url: str) -> Reply:
    """Return the answer of a planned `status`: JSON for 500, else a proxy's HTML, redirects to the login page."""
    if fault.status == 500:
        return failure_reply(RuntimeError("planned fault"))
    reply = login_reply(url) if fault.status in (301, 302, 303, 307, 308) else html_reply(fault.status)
    reply.status = fault.status
    if fault.retry_after is not None:
        reply.headers["Retry-After"] = str(fault.retry_after)
    return reply


def bad_request_reply(message: str) -> Reply:
    """Return the server's answer to a parameter that it can't read."""
    return json_reply(400, {"timestamp": _now_text(), "duration": 1.0, "code": 400, "message": message})


def _now_text() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def takes_gzip(accept_encoding: str) -> bool:
    """Return whether a client wants gzip."""
    return any(part.split(";")[0].strip().lower() == "gzip" and "q=0" not in part.replace("q=0.", "")
               for part in accept_encoding.split(","))
