"""What an `s3://` URL says, and what is not taken for one."""

import pytest

from tracekit.errors import UsageError
from tracekit.objects.address import Address, is_url

NAMES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def parts(url):
    found = Address.of(url)
    return found.bucket, found.key, found.endpoint, found.scheme, found.region


def test_a_url_names_bucket_key_and_server():
    assert parts("s3://runs/7/t.arrow") == ("runs", "7/t.arrow", None, "https", None)
    assert parts("s3://runs/a%20b/?region=eu-west-1") == ("runs", "a b", None, "https", "eu-west-1")
    there = "s3://runs/t?endpoint_override="
    assert parts(there + "http://127.0.0.1:9000/")[2:4] == ("127.0.0.1:9000", "http")
    assert parts(there + "127.0.0.1:9000&scheme=http")[2:4] == ("127.0.0.1:9000", "http")
    assert parts(there + "store.example.org")[2:4] == ("store.example.org", "https")


def test_what_the_url_leaves_open_is_taken_from_the_environment(monkeypatch):
    for name, value in zip(NAMES, ("http://a:1", "http://b:2", "r1", "r2"), strict=True):
        monkeypatch.setenv(name, value)
    assert parts("s3://runs/t") == ("runs", "t", "b:2", "http", "r1")
    assert parts("s3://runs/t?endpoint_override=https://c:3&region=r3")[2:] == ("c:3", "https", "r3")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://runs", "s3://BUCKET/KEY, not s3://runs"),
        ("s3:///t", "s3://BUCKET/KEY"),
        ("s3://key:secret@runs/t", "credentials do not belong into a URL"),
        ("s3://runs/t?endpoint=x", "takes the options endpoint_override, scheme, region, not endpoint"),
    ],
)
def test_other_urls_are_usage_errors(url, why):
    with pytest.raises(UsageError, match=why) as caught:
        Address.of(url)
    assert "secret" not in str(caught.value)


def test_paths_are_not_urls():
    assert is_url("s3://a/b") and not is_url("s3/b") and not is_url("/s3://a")
