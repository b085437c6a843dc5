"""AWS Signature Version 4 for GET, pure.

Format: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; tests hold it against botocore.

libcurl could sign by itself. That costs as much, but signs `Accept-Encoding` too, which proxies change, and can't send
a name with `..` in it as it is (docs/design/012-buckets.md).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Mapping

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def sign_get(
    host: str, path: str, signed_fields: Mapping[str, str], *, access_key: str, secret_key: str, region: str, time: str
) -> list[str]:
    """Return the header fields of a signed GET, those that were to be signed included.

    Parameters
    ----------
    host
        As in the `Host` field: with the port, if it is no usual one.
    path
        Quoted, from the first slash. There is no query.
    signed_fields
        Further fields to sign, by lower-case name.
    time
        Now in UTC as in 20150830T123600Z.
    """
    named = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": time, **signed_fields}
    names = sorted(named)
    listed = ";".join(names)
    fields = "".join(f"{name}:{named[name]}\n" for name in names)
    request = f"GET\n{path}\n\n{fields}\n{listed}\n{EMPTY_SHA256}"
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_signing_key(secret_key, time[:8], region), text.encode(), "sha256").hex()
    del named["host"]  # libcurl sends it
    return [*(f"{name}: {value}" for name, value in named.items()),
            f"Authorization: AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={listed},"
            f"Signature={signature}"]


@functools.lru_cache(maxsize=8)
def _signing_key(secret_key: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
