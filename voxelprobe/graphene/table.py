"""A graphene table, as a run knows it: its address and what its ids mean, without a connection."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxelprobe.graphene.asking import with_retries
from voxelprobe.graphene.ids import GraphLayout, parse_graph
from voxelprobe.graphene.tokens import find_token
from voxelprobe.graphene.url import GrapheneUrl, parse_graphene_url

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
    return GraphTable(url, parse_graph(document, url.url)), document


def _open_client(url: GrapheneUrl, connections: int) -> GraphClient:
    from voxelprobe.graphene.client import GraphClient

    return GraphClient(url, token=find_token(url.host), connections=connections)
