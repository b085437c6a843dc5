"""Addresses of graphene tables, as CloudVolume takes them.

Forms: `extract_graphene_path` in cloudvolume/datasource/graphene/metadata.py. Whatever form is
written, the info is at `/segmentation/table/NAME/info` and the calls are version 1 of the API.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from voxelprobe.errors import InputError

EXAMPLE = "graphene://https://HOST/segmentation/table/NAME"
# `segmentation` in every published address; CloudVolume takes any word.
_PATHS = (
    r"/(?P<service>\w+)/table/(?P<table>[\w.\-]+)",
    r"/(?P<service>\w+)/api/v1/table/(?P<table>[\w.\-]+)",
    r"/(?P<service>\w+)/api/v1/(?P<table>[\w.\-]+)",
    r"/(?P<service>\w+)/1\.0/(?P<table>[\w.\-]+)",
)


@dataclass(frozen=True, slots=True)
class GrapheneUrl:
    """A table of a graph server.

    Attributes
    ----------
    server
        `https://HOST`, without a slash at the end; `http://` for this computer only.
    host
        The host with its port, if one is written: what token files are named by.
    service
        The first word of the path: `segmentation`.
    """

    server: str
    host: str
    service: str
    table: str

    @property
    def url(self) -> str:
        """Return the cloudpath in the one form that every other form is brought to."""
        return f"graphene://{self.server}/{self.service}/table/{self.table}"

    @property
    def info_url(self) -> str:
        """Return the address of the volume's info."""
        return f"{self.server}/{self.service}/table/{self.table}/info"

    @property
    def api_url(self) -> str:
        """Return the address below which the calls are."""
        return f"{self.server}/{self.service}/api/v1/table/{self.table}"


def parse_graphene_url(text: str) -> GrapheneUrl:
    """Return the table that a cloudpath names.

    Raises
    ------
    InputError
        If it isn't the cloudpath of a graphene table. The message doesn't repeat a user name,
        password or query: a token may have been pasted there.
    """
    match = re.fullmatch(r"graphene://(?:middleauth\+)?(https?://.*)", text.strip(), re.IGNORECASE)
    if match is None:
        raise InputError(f"volume {_shown(text)!r}: expected {EXAMPLE}")
    try:
        parts = urlsplit(match[1])
        host = _host(parts)
    except ValueError:
        raise InputError(f"volume {_shown(text)!r}: expected a host as in {EXAMPLE}") from None
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"volume {_shown(text)!r}: expected {EXAMPLE} and nothing else; a token belongs in a file")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise InputError(f"volume {_shown(text)!r}: expected https, since a token is sent along")
    path = re.sub(r"(/info)?/*$", "", parts.path)
    for pattern in _PATHS:
        if (found := re.fullmatch(pattern, path, re.ASCII)) and found["table"].strip("."):
            return GrapheneUrl(f"{parts.scheme}://{host}", host, found["service"], found["table"])
    raise InputError(
        f"volume {_shown(text)!r}: expected {EXAMPLE} (or /segmentation/api/v1/NAME, or /segmentation/1.0/NAME)"
    )


def is_loopback(hostname: str) -> bool:
    """Return whether a host name is this computer's own."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _host(parts: SplitResult) -> str:
    name, port = parts.hostname or "", parts.port
    if ":" in name:
        name = f"[{ipaddress.IPv6Address(name)}]"
    elif not re.fullmatch(r"[a-z0-9]([a-z0-9.\-_]*[a-z0-9])?", name):
        raise ValueError
    return name if port is None else f"{name}:{port}"


def _shown(text: str) -> str:
    """Return a cloudpath without what may be secret in it."""
    return re.sub(r"//.*@", "//…@", re.sub(r"[?#].*", "?…", text.strip(), flags=re.DOTALL), flags=re.DOTALL)
