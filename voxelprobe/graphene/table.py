"""A graphene table, as a run knows it: its address and what its ids mean, without a connection."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from voxelprobe.errors import InputError
from voxelprobe.graphene.asking import with_retries
from voxelprobe.graphene.ids import GraphLayout, parse_graph
from voxelprobe.graphene.tokens import find_token
from voxelprobe.graphene.url import GrapheneUrl, is_loopback, parse_graphene_url
from voxelprobe.locations import Location
from voxelprobe.transport.reach import kind_of_address

if TYPE_CHECKING:
    from voxelprobe.graphene.client import GraphClient

# A mistyped host must be said soon; a busy server is asked more patiently for roots.
INFO_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class GraphTable:
    """A table of a graph server, and the layout of its ids."""

    url: GrapheneUrl
    layout: GraphLayout

    def open_client(self, *, connections: int) -> GraphClient:
        """Return a client, with the token that the host has a file for, if any."""
        return _open_client(self.url, connections)

    def names_as_user(self, location: Location) -> bool:
        """Return whether the watershed's place may be taken as if the user had named it: on the same server."""
        host = urlsplit(location.url.removeprefix("s3://")).netloc
        return is_loopback(urlsplit(self.url.server).hostname or "") or host == self.url.host


def check_data_dir(data_dir: str, url: GrapheneUrl) -> None:
    """Raise if a server elsewhere says that its watershed is on this computer.

    Raises
    ------
    InputError
        If it is a local folder, or on a web server at an address that only means this computer. What a name means is
        seen when a connection is made; see `voxelprobe.transport.reach`.
    """
    if is_loopback(urlsplit(url.server).hostname or ""):
        return
    if data_dir.startswith("file://"):
        raise InputError(f"{url.url}/info: data_dir {data_dir!r} leads to this computer's files; expected a bucket or "
                         "a web server, since the graph server is elsewhere")
    host = urlsplit(data_dir.removeprefix("s3://")).hostname or ""
    if kind := kind_of_address(host):
        raise InputError(f"{url.url}/info: data_dir {data_dir!r} leads to a {kind} address; the graph server is "
                         "elsewhere")


def fetch_table(cloudpath: str) -> tuple[GraphTable, dict[str, Any]]:
    """Return the table that a graphene cloudpath names, and its info, which describes the watershed's scales too.

    Raises
    ------
    InputError
        If it isn't such a cloudpath, or there is no such table.
    AuthorizationError, TransportError
        If the server refuses us or doesn't answer.
    """
    url = parse_graphene_url(cloudpath)
    with closing(_open_client(url, 1)) as client:
        document = with_retries(client.fetch_info, attempts=INFO_ATTEMPTS)
    layout = parse_graph(document, url.url)
    check_data_dir(layout.data_dir, url)
    return GraphTable(url, layout), document


def _open_client(url: GrapheneUrl, connections: int) -> GraphClient:
    from voxelprobe.graphene.client import GraphClient

    return GraphClient(url, token=find_token(url.host), connections=connections)
