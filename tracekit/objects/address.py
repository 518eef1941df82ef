"""What an `s3://` URL names: a bucket, a key, and the server that has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tracekit.errors import UsageError

SCHEME = "s3://"
_OPTIONS = ("endpoint_override", "scheme", "region")  # as pyarrow.fs.FileSystem.from_uri has them


def is_url(text: str) -> bool:
    """Say whether a text names something in an object store, and not on this machine."""
    return text.startswith(SCHEME)


@dataclass(frozen=True)
class Address:
    """Where an object, or all objects below a prefix, are.

    Example:
        Address.of("s3://runs/7/trace.arrow?endpoint_override=http://127.0.0.1:9000")
    """

    url: str  # as the user wrote it
    bucket: str
    key: str
    endpoint: str | None  # HOST[:PORT]; None for AWS
    scheme: str
    region: str | None

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL; what its query leaves open is taken from the environment, as the AWS clients do.

        Raises:
            UsageError: it names no bucket or key, holds credentials, or has an option that is not known.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(f"this is not a URL ({error}): {url}") from None
        if "@" in parts.netloc:
            raise UsageError("credentials do not belong into a URL, which is printed and stored: "
                             "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")  # fmt: skip
        key = unquote(parts.path).strip("/")
        if not parts.netloc or not key:
            raise UsageError(f"a URL of an object store is s3://BUCKET/KEY, not {url}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise UsageError(f"a URL takes the options {', '.join(_OPTIONS)}, not {', '.join(unknown)}: {url}")
        environ = os.environ
        server = (
            options.get("endpoint_override") or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        )
        scheme, _, endpoint = (server or "").rpartition("://")
        return cls(
            url,
            parts.netloc,
            key,
            endpoint.rstrip("/") or None,
            scheme or options.get("scheme") or "https",
            options.get("region") or _environ("AWS_REGION", "AWS_DEFAULT_REGION"),
        )

    def below(self, name: str) -> Address:
        """Return the address of an object below this one."""
        parts = urlsplit(self.url)
        return Address.of(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl())

    @property
    def path(self) -> str:
        """Bucket and key, as pyarrow's filesystem takes them."""
        return f"{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def server(self) -> str:
        """Who is asked, for people."""
        return f"{self.scheme}://{self.endpoint}" if self.endpoint else "AWS"


def _environ(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)
