"""The options of the daemon, for both of its command lines; `tracekitd.config.Config` says what they are."""

from __future__ import annotations

from typing import NamedTuple

from tracekitd.config import Config


class Option(NamedTuple):
    """One option; none has a default, so that a file can say it."""

    name: str
    metavar: str  # empty: a switch
    help: str
    many: bool = False
    kind: type = str


OPTIONS = (
    Option("config", "FILE", "TOML with the names of these options; an option wins over it."),
    Option("check-config", "", "Print what would be done, and end."),
    Option("listen", "ADDRESS", "unix:PATH in a folder of yours alone, grpcs://HOST:PORT, or both.", many=True),
    Option("spool", "DIR", "Folder of the hot segments."),
    Option("seal", "OUT", "At the end, make this trace and remove the spool."),
    Option("grace", "SECS", f"How long to wait for open engines ({Config.grace:g}).", kind=float),
    Option("cert", "PEM", "Certificate of grpcs://, read again when it changes."),
    Option("key", "PEM", "Its key, mode 0600."),
    Option("client-ca", "PEM", "Clients need a certificate that this one signed."),
    Option("token-file", "FILE", "Clients need one of these tokens, one per line, mode 0600."),
    Option("metrics", "HOST:PORT", "Serve metrics for Prometheus over HTTP."),
    Option("log", "text|json", "How to write the log, on stderr."),
    Option("roll-secs", "SECS", f"End a segment after this time, and seal it ({Config.roll_secs:g}).", kind=float),
    Option("roll-bytes", "BYTES", f"Or at this size ({Config.roll_bytes:.0f}).", kind=float),
    Option("archive", "s3://URL", "Store every sealed part below this URL."),
    Option("keep-secs", "SECS", "Remove parts from the spool after this time, once they are archived.", kind=float),
    Option("keep-bytes", "BYTES", "Or the oldest, where all parts are larger than this.", kind=float),
    Option("attached", "", "End at a line on standard input, not at signals."),
)
