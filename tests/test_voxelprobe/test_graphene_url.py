"""Cloudpaths of graphene tables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe.errors import InputError
from voxelprobe.graphene.url import is_loopback, parse_graphene_url

CANONICAL = "graphene://https://cave.lab.org/segmentation/table/minnie3_v1"


@pytest.mark.parametrize(
    "text",
    [
        CANONICAL,
        f"  {CANONICAL}/ ",
        f"{CANONICAL}/info",
        CANONICAL.replace("https://", "middleauth+https://"),
        CANONICAL.replace("cave.lab.org", "Cave.Lab.ORG"),
        "graphene://https://cave.lab.org/segmentation/api/v1/minnie3_v1",
        "graphene://https://cave.lab.org/segmentation/api/v1/minnie3_v1/",
        "graphene://https://cave.lab.org/segmentation/api/v1/table/minnie3_v1",
        "graphene://middleauth+https://cave.lab.org/segmentation/1.0/minnie3_v1",
    ],
)
def test_every_form_is_one_table(text: str) -> None:
    """Each way to write a table gives the same addresses, so the same run."""
    url = parse_graphene_url(text)
    assert url.url == CANONICAL
    assert (url.server, url.host, url.service, url.table) == (
        "https://cave.lab.org", "cave.lab.org", "segmentation", "minnie3_v1")
    assert url.info_url == "https://cave.lab.org/segmentation/table/minnie3_v1/info"
    assert url.api_url == "https://cave.lab.org/segmentation/api/v1/table/minnie3_v1"
    assert parse_graphene_url(url.url) == url


@pytest.mark.parametrize(
    "form", ["segmentation/table/{}", "segmentation/api/v1/{}", "segmentation/1.0/{}", "meshing/table/{}"]
)
@pytest.mark.parametrize("name", ["fly_v31", "zheng-ca3", "pinky100.v2", "h01_c3_flat"])
@pytest.mark.parametrize("prefix", ["graphene://https://", "graphene://middleauth+https://"])
@pytest.mark.parametrize("host", ["prod.flywire-daf.com", "local.lab:8443"])
def test_as_cloudvolume_reads_them(form: str, name: str, prefix: str, host: str) -> None:
    """Server, service and table are those that CloudVolume finds."""
    from cloudvolume.datasource.graphene.metadata import extract_graphene_path

    text = f"{prefix}{host}/{form.format(name)}"
    theirs = extract_graphene_path(text.replace("graphene://", "").replace("middleauth+", ""))
    ours = parse_graphene_url(text)
    assert (ours.server, ours.host) == (f"{theirs.scheme}://{theirs.fqdn}", theirs.fqdn)
    assert (ours.service, ours.table) == (theirs.modality, theirs.dataset)


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:80", "[::1]:5000", "127.3.2.1"])
def test_http_on_this_computer(host: str) -> None:
    """A server of this computer needs no encryption."""
    url = parse_graphene_url(f"graphene://http://{host}/segmentation/table/t")
    assert (url.server, url.host) == (f"http://{host}", host)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org"])
def test_http_elsewhere_is_refused(host: str) -> None:
    """No token goes over a network in the clear."""
    assert not is_loopback(host)
    with pytest.raises(InputError, match="https"):
        parse_graphene_url(f"graphene://http://{host}/segmentation/table/t")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "graphene://",
        "graphene://https://",
        "gs://bucket/seg",
        "https://cave.lab.org/segmentation/table/t",
        "graphene://gs://bucket/table/t",
        "graphene://cave.lab.org/segmentation/table/t",
        "graphene://https:///segmentation/table/t",
        "graphene://https://host:port/segmentation/table/t",
        "graphene://https://ho st/segmentation/table/t",
        "graphene://https://[fe80/segmentation/table/t",
        "graphene://https://host/segmentation/table/",
        "graphene://https://host/segmentation/table/..",
        "graphene://https://host/segmentation/table/a/b",
        "graphene://https://host/segmentation/table/a%2Fb",
        "graphene://https://host/segmentation/table/tablé",
        "graphene://https://host/segmentation/2.0/t",
        "graphene://https://host/segmentation/api/v2/t",
        "graphene://https://host/t",
    ],
)
def test_bad_addresses(text: str) -> None:
    """What names no table is refused with the form that was expected."""
    with pytest.raises(InputError, match=re.escape("graphene://https://HOST/segmentation/table/NAME")):
        parse_graphene_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "graphene://https://cave.lab.org/segmentation/table/t?token=0123secret",
        "graphene://https://cave.lab.org/segmentation/table/t#0123secret",
        "graphene://https://me:0123secret@cave.lab.org/segmentation/table/t",
        "graphene://https://0123secret@cave.lab.org/segmentation/table/t",
        "graphene://https://me:0123/secret@cave.lab.org/segmentation/table/t",
        "graphene://https://me:0123secret@cave.lab.org/elsewhere",
        "graphene://ftp://me:0123secret@cave.lab.org/elsewhere",
    ],
)
def test_secrets_in_addresses(text: str) -> None:
    """A token in an address is refused, and not repeated in the message."""
    with pytest.raises(InputError) as caught:
        parse_graphene_url(text)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(max_size=60), st.sampled_from(["", "graphene://", "graphene://https://", f"{CANONICAL}/"]))
def test_any_text_is_a_table_or_an_error(text: str, prefix: str) -> None:
    """No text gives anything but a table in its one form, or an InputError."""
    try:
        url = parse_graphene_url(prefix + text)
    except InputError:
        return
    assert parse_graphene_url(url.url) == url
