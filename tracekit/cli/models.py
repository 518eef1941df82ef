"""What `--model` may name: a folder, the URL of one, or a model of `tracekit/demo/models.py`."""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import NoModelFolderError


def model_folder(name: str) -> Path:
    """Return the folder of a model; one known by name, such as `demo`, is made on first use, an `s3://` URL is fetched.

    Raises:
        NoModelFolderError: there is no such folder.
        StoreError: what lies behind a URL cannot be had.
        EngineEnvError: the packages of a model known by name could not be fetched.
        CacheError: the disk is too short for it, or the cache folder cannot be written.
        ModelError: what was fetched for it is not the file expected.
    """
    from tracekit.cli.sources import say
    from tracekit.demo.models import MODELS, ensure_model
    from tracekit.engines.talk import Talk
    from tracekit.objects.address import is_url
    from tracekit.objects.fetch import local_folder

    if name in MODELS:
        with Talk() as talk:
            return ensure_model(name, talk)
    if is_url(name):
        return local_folder(name, say)
    if not Path(name).is_dir():
        raise NoModelFolderError(name)
    return Path(name).absolute()
