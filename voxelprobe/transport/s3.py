"""Objects in S3 and stores like it: a web server whose requests are signed.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html; where boto3 sends a request for a bucket is
written in its endpoint rules, and a test holds this against it.

Without keys in cloud-files' places a request goes unsigned, as a public bucket wants it. Only when that is refused is
botocore asked, which also knows profiles and the roles of machines, but takes a second where there are none.
"""

from __future__ import annotations

import functools
import os
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.transport.addresses import Address
from voxelprobe.transport.answers import byte_range, read_object
from voxelprobe.transport.http import AS_STORED, Ask, HttpSource, describe_credentials
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject
from voxelprobe.transport.secrets import REGION, Secret, find_keys, secret_places
from voxelprobe.transport.signing import sign_get

if TYPE_CHECKING:
    from voxelprobe.transport.curl import Answer

_CODE = re.compile(rb"<Code>(\w{1,60})</Code>")
_REGION_SAID = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
# RFC 1035 names, which can stand before a server's; dots in them match no certificate.
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
# Answered with 400, some of them.
_EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "RequestExpired", "TokenRefreshRequired"})

# What answers have told of a bucket (endpoint, name), for the sources of this process that open it later.
_regions: dict[tuple[str, str], str] = {}
_refuse_anonymous: set[tuple[str, str]] = set()


class S3Source(HttpSource):
    """A folder in a bucket."""

    def __init__(
        self, url: str, address: Address, *, read_timeout_seconds: int | None = None, named_by_user: bool = True
    ) -> None:
        self._address = address
        self._endpoint = (address.endpoint or _endpoint_of_environment() or "").rstrip("/").lower()
        self._bucket = (self._endpoint, address.bucket)
        self._folder = f"{address.folder}/" if address.folder else ""
        # A server in the cloudpath is to be named by the user, who has keys for it; the other ones are known.
        named_by_user = named_by_user or address.endpoint is None or address.service != "aws"
        super().__init__(url, read_timeout_seconds=read_timeout_seconds, verbatim=True, named_by_user=named_by_user)

    def ask(self, request: Request) -> Ask:
        """Return what to send for a request: signed, if there are keys."""
        name, region = f"{self.url}/{request.path}", _regions.get(self._bucket, self._region)
        server, path = locate_object(self._address.bucket, f"{self._folder}{request.path}", region, self._endpoint)
        # An S3 of 2022 and later says its checksum if asked to. Of a range there is none.
        fields = {"range": byte_range(request)} if request.is_ranged else {"x-amz-checksum-mode": "ENABLED"}
        keys = self._keys or self._keys_of_botocore()
        if keys is None:
            return Ask(name, f"{server}{path}", [AS_STORED, *(f"{field}: {value}" for field, value in fields.items())])
        if token := keys.reveal().get("AWS_SESSION_TOKEN"):
            fields["x-amz-security-token"] = token
        signed = sign_get(
            _host_field(server), path, fields, access_key=keys.text("AWS_ACCESS_KEY_ID"),
            secret_key=keys.text("AWS_SECRET_ACCESS_KEY"), region=region,
            time=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        )
        return Ask(name, f"{server}{path}", [AS_STORED, *signed], keys.origin)

    def read(self, answer: Answer, request: Request, ask: Ask) -> StoredObject | None:
        """Return the object that the store answered with, or None for a key that it doesn't have."""
        name = ask.name
        if answer.status in (200, 206, 416):
            return read_object(answer, name, request, etag_is_md5=True)
        found = _CODE.search(answer.content)
        code = found[1].decode() if found else ""
        if answer.status == 404:
            if code == "NoSuchBucket":
                where = f" at {self._endpoint}" if self._endpoint else ""
                raise TransportError(f"{name}: there is no bucket {self._address.bucket}{where} (404 NoSuchBucket)")
            if code != "NoSuchKey":
                # Not S3's word for it: a gateway says 404 too while the store behind it is away.
                raise RetryableError(f"{name}: expected 404 to be NoSuchKey, found {code or 'no reason'}")
            return None
        if (answer.status in (301, 307) or code in _WRONG_REGION) and (region := _region_said(answer)):
            _regions[self._bucket] = region
            raise RetryableError(f"{name}: the bucket is in region {region}", 0.0)
        if code in _EXPIRED or answer.status in (401, 403):
            if self._may_ask_otherwise(ask, code):
                raise RetryableError(f"{name}: refused ({answer.status} {code}); trying other credentials", 0.0)
            raise AuthorizationError(self._refusal(name, answer.status, code, ask))
        if code:
            # Nothing but the code: a message of S3's may repeat the key and what was signed.
            name = f"{name} ({code})"
        return read_object(answer, name, request)

    def _find_credentials(self) -> None:
        self._keys, self._region = find_keys(self._address.bucket, self._address.service)
        if not self._named_by_user:
            self._keys = None

    def _keys_of_botocore(self) -> Secret | None:
        return _keys_of_botocore() if self._named_by_user and self._bucket in _refuse_anonymous else None

    def _may_ask_otherwise(self, ask: Ask, code: str) -> bool:
        """Return whether there are credentials that weren't sent yet, having made them the next to send."""
        if not ask.sent:
            _refuse_anonymous.add(self._bucket)
            return (self._keys or self._keys_of_botocore()) is not None
        if code not in _EXPIRED:
            return False
        self._find_credentials()
        keys = self._keys or self._keys_of_botocore()
        # Against what was sent, not what was known: of several requests the first answer has brought new keys.
        return keys is not None and f"x-amz-security-token: {keys.reveal().get('AWS_SESSION_TOKEN')}" not in ask.fields

    def _refusal(self, name: str, status: int, code: str, ask: Ask) -> str:
        places = [*secret_places(self._address.service, self._address.bucket),
                  "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)", "where botocore looks"]
        said = f"{name}: {self._endpoint or 'S3'} refused bucket {self._address.bucket}'s object ({status} {code})"
        said = said.replace(" )", ")")
        credentials = describe_credentials(ask.sent, places)
        if code not in ("", "AccessDenied"):
            return f"{said}; {credentials}"
        return (f"{said}: either it may not be read, or there is none and the bucket may not be listed, for which S3 "
                f"answers the same; {credentials}. If the objects of this folder may be read, allow s3:ListBucket too, "
                "so that an absent chunk can be told from a refused one")


def locate_object(bucket: str, key: str, region: str, endpoint: str) -> tuple[str, str]:
    """Return the server of an object, as in `https://host:port`, and its quoted path.

    Parameters
    ----------
    endpoint
        A server other than Amazon's, which has the bucket's name in the path; or "".
    """
    if endpoint:
        return endpoint, f"/{quote(bucket)}/{quote(key)}"
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    if _HOST_LABEL.fullmatch(bucket):
        return f"https://{bucket}.s3.{region}.{domain}", f"/{quote(key)}"
    return f"https://s3.{region}.{domain}", f"/{quote(bucket)}/{quote(key)}"


def _host_field(server: str) -> str:
    """Return what libcurl sends as `Host`: without the port that is usual."""
    scheme, _, host = server.partition("://")
    return host.removesuffix(":443" if scheme == "https" else ":80")


def _region_said(answer: Answer) -> str:
    """Return the region that an answer sends us to, if it says one that a request can be made for."""
    found = _REGION_SAID.search(answer.content)
    region = answer.field(b"x-amz-bucket-region") or (found[1].decode() if found else "")
    return region if REGION.fullmatch(region) else ""


def _endpoint_of_environment() -> str | None:
    """Return the server that botocore, and with it cloud-files, takes for Amazon's."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not re.fullmatch(r"https?://[^/?#@]+/?", endpoint):
        raise InputError(f"AWS_ENDPOINT_URL: expected https://SERVER, found {endpoint}")
    return endpoint


def _keys_of_botocore() -> Secret | None:
    try:
        credentials = _credentials_of_botocore(os.getpid())
        if credentials is None:
            return None
        keys = credentials.get_frozen_credentials()  # fresh ones, if they end
        complaint = ""
    except Exception as error:
        complaint = type(error).__name__
    if complaint:
        # Not from the error, which may say what a program or a server answered.
        raise AuthorizationError(f"botocore finds no credentials: {complaint}")
    values = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key,
              "AWS_SESSION_TOKEN": keys.token}
    return Secret(values, f"botocore ({credentials.method})")


@functools.cache
def _credentials_of_botocore(process: int) -> Any:
    """Return what botocore finds, for this process: it may hold locks, which a fork would copy."""
    from botocore.session import Session

    return Session().get_credentials()
