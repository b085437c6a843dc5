"""Which addresses a source may connect to: a server elsewhere doesn't send us to this computer's own services.

A redirect, or a cloudpath in the `info` of a graph server, is the word of somebody else. It may lead to any server out
there, but not to a loopback address, where services trust whoever asks, nor to the link-local ones, where clouds hand
out a machine's credentials: unless the user named such an address to begin with. It is the address that is looked at
when a connection is made, whatever name it was found by.

Private networks (10.0.0.0/8 and the like) are not told from others: stores of a lab are there.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from typing import Any, Literal

Kind = Literal["loopback", "link-local"]

# Where clouds have a machine's metadata outside of the link-local networks: Amazon's, Alibaba's.
_METADATA = frozenset({"fd00:ec2::254", "100.100.100.200"})



def kind_of_address(text: str) -> Kind | None:
    """Return what an IP address is, where it isn't one that anybody may be sent to; a host's name is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0].strip("[]"))
    except ValueError:
        return "loopback" if text.rstrip(".").lower() in ("localhost", "ip6-localhost") else None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback or address.is_unspecified:  # Linux takes 0.0.0.0 for itself
        return "loopback"
    return "link-local" if address.is_link_local or str(address) in _METADATA else None


class Reach:
    """The kinds of special addresses that one source has a reason to connect to.

    Parameters
    ----------
    named_by_user
        Whether the first address, before any redirect, is one that the user gave.
    """

    def __init__(self, *, named_by_user: bool) -> None:
        self._named_by_user = named_by_user
        self._kinds: set[Kind] = set()
        # With a proxy connections are made to that, and it is the proxy's to say where it goes.
        self._is_proxied = bool(urllib.request.getproxies_environment().keys() & {"http", "https", "all"})

    def complain(self, address: str, *, redirected: bool) -> str:
        """Return why an address may not be connected to, or "" if it may."""
        kind = kind_of_address(address)
        if kind is None or kind in self._kinds or self._is_proxied:
            return ""
        if self._named_by_user and not redirected:
            self._kinds.add(kind)
            return ""
        how = "a redirect" if redirected else "somebody else's metadata"
        return f"{how} leads to {address}, a {kind} address; only a user can name one"


class _Handed(socket.socket):
    """A socket that pycurl takes a copy of and then forgets."""

    def __del__(self) -> None:
        self.close()


def open_socket(address: Any) -> socket.socket:
    """Return a socket for an address as libcurl describes it."""
    return _Handed(address.family, address.socktype, address.protocol)
