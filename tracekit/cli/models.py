"""What `--model` may name: a folder, the URL of one, or `demo`."""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import NoModelFolderError


def model_folder(name: str) -> Path:
    """Return the folder of a model; `demo` is SmolLM2-135M-Instruct, made on first use, an `s3://` URL is fetched.

    Raises:
        NoModelFolderError: there is no such folder.
        StoreError: what lies behind a URL cannot be had.
        EngineEnvError: the demo model could not be made.
    """
    from tracekit.cli.sources import say
    from tracekit.objects.address import is_url
    from tracekit.objects.fetch import local_folder

    if name == "demo":
        from tracekit.demo.model import ensure_demo_model
        from tracekit.engines.talk import Talk

        with Talk() as talk:
            return ensure_demo_model(talk)
    if is_url(name):
        return local_folder(name, say)
    if not Path(name).is_dir():
        raise NoModelFolderError(name)
    return Path(name).absolute()
