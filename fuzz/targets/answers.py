"""What web servers answer: status, fields, and the body against them."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import zlib
from typing import Any

import google_crc32c

from fuzz.target import Target, attempt, is_refused, mutate_json
from voxelprobe.errors import TransportError
from voxelprobe.transport.answers import byte_range, read_object
from voxelprobe.transport.curl import Answer
from voxelprobe.transport.protocol import Request, RetryableError

_OBJECT = bytes(range(60))
_STATUSES = (200, 206, 416, 403, 404, 408, 429, 500, 503, 204, 301, 0)


def _describe(
    status: int, fields: dict[str, str], content: bytes, start: int | None, end: int | None, is_md5: bool
) -> bytes:
    return json.dumps({
        "status": status, "fields": fields, "content": content.decode("latin-1"), "start": start, "end": end,
        "md5": is_md5,
    }).encode()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _seeds() -> list[bytes]:
    crc, md5 = _base64(google_crc32c.value(_OBJECT).to_bytes(4, "big")), hashlib.md5(_OBJECT).digest()
    whole = [
        {"x-goog-hash": f"crc32c={crc},md5={_base64(md5)}"},
        {"x-amz-checksum-crc32c": crc},
        {"x-amz-checksum-crc32": _base64(zlib.crc32(_OBJECT).to_bytes(4, "big"))},
        {"etag": f'"{md5.hex()}"'},
        {"x-amz-checksum-sha256": _base64(hashlib.sha256(_OBJECT).digest())},
        {"content-md5": _base64(md5)},
        {"content-encoding": "gzip, aws-chunked"},
        {"x-goog-stored-content-encoding": "gzip"},
    ]
    seeds = [_describe(200, fields, _OBJECT, None, None, True) for fields in whole]
    seeds += [
        _describe(206, {"content-range": f"bytes {a}-{b - 1}/60"}, _OBJECT[a:b], start, end, False)
        for a, b, start, end in ((5, 20, 5, 20), (50, 60, 50, 90), (52, 60, -8, None), (0, 60, -90, None))
    ]
    seeds += [
        _describe(206, {"content-range": "bytes 5-19/*"}, _OBJECT[5:20], 5, 20, False),
        _describe(200, {}, _OBJECT, 5, 20, False),
        _describe(416, {"content-range": "bytes */60"}, b"no", 70, 80, False),
        _describe(503, {"retry-after": "3"}, b"", None, None, False),
    ]
    return seeds


def _number(value: Any) -> int | None:
    return value if type(value) is int and -(2**62) < value < 2**62 else None


def _check(data: bytes) -> bool:
    try:
        document = json.loads(data)
        fields = {name.encode("latin-1"): value.encode("latin-1") for name, value in document["fields"].items()}
        content = document["content"].encode("latin-1")
        answer = Answer(document["status"], fields, content)
        request = Request("name", _number(document["start"]), _number(document["end"]))
        status = document["status"] if type(document["status"]) is int else _STATUSES[len(data) % len(_STATUSES)]
        answer = answer._replace(status=status)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if request.is_empty or ((request.start or 0) < 0 and request.end is not None):
        return False  # nobody asks so
    assert byte_range(request).startswith("bytes=")
    found = attempt(read_object, answer, "name", request, etag_is_md5=bool(document.get("md5")))
    if is_refused(found):
        assert isinstance(found, TransportError)
        if isinstance(found, RetryableError):
            assert found.wait_seconds is None or 0 <= found.wait_seconds <= 10**9
        return False
    assert status in (200, 206) or (status == 416 and request.is_ranged and found.content == b"")
    if status == 200:
        _hold_sums(answer, bool(document.get("md5")))
        assert found.content == (content[request.start : request.end] if request.is_ranged else content)
    elif status == 206:
        _hold_range(answer, request)
        assert found.content == content
    return True


def _hold_sums(answer: Answer, is_md5: bool) -> None:
    """The first sum that is given is right; Google's are in one field."""
    google = dict(part.strip().split("=", 1) for part in answer.field(b"x-goog-hash").split(",") if "=" in part)
    content = answer.content
    sums = [
        (google.get("crc32c"), _base64(google_crc32c.value(content).to_bytes(4, "big"))),
        (answer.field(b"x-amz-checksum-crc32c"), _base64(google_crc32c.value(content).to_bytes(4, "big"))),
        (answer.field(b"x-amz-checksum-crc32"), _base64(zlib.crc32(content).to_bytes(4, "big"))),
        (answer.field(b"x-amz-checksum-sha256"), _base64(hashlib.sha256(content).digest())),
        (answer.field(b"content-md5"), _base64(hashlib.md5(content).digest())),
    ]
    given = [
        (said, right) for place, (said, right) in enumerate(sums) if said and not (1 <= place <= 3 and "-" in said)
    ]
    if given:
        assert given[0][0] == given[0][1], given
    elif (is_md5 and not google.get("md5") and re.fullmatch('"[0-9a-f]{32}"', answer.field(b"etag"))
          and not any(b"encryption" in name for name in answer.fields)):
        assert answer.field(b"etag").strip('"') == hashlib.md5(content).hexdigest()


def _hold_range(answer: Answer, request: Request) -> None:
    """The bytes begin where it was asked, there are as many as described, and none is missing at the end."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.field(b"content-range"), re.ASCII)
    assert match
    first, last = int(match[1]), int(match[2])
    assert last - first + 1 == len(answer.content)
    start = request.start or 0
    if match[3] == "*":
        assert first == start >= 0
        return
    size = int(match[3])
    assert first == (start if start >= 0 else max(size + start, 0))
    assert last + 1 == (size if request.end is None else min(request.end, size))


def _mutate(data: bytes, rng: random.Random) -> bytes:
    data = mutate_json(data, rng)
    if rng.random() < 0.3:
        try:
            document = json.loads(data)
            first, last, size = (
                rng.choice(some) for some in ((0, 5, 50, 52, 59), (4, 19, 59, 60), (60, 59, 61, "*", 0))
            )
            document["fields"]["content-range"] = f"bytes {first}-{last}/{size}"
            document["status"] = 206
            return json.dumps(document).encode()
        except (ValueError, KeyError, TypeError):
            pass
    return data


TARGETS = {"answers": Target(_seeds, _check, _mutate, most_bytes=2000)}
