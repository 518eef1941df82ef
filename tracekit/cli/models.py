"""What `--model` may name: a folder, or `demo`."""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import NoModelFolderError


def model_folder(name: str) -> Path:
    """Return the folder of a model; `demo` is SmolLM2-135M-Instruct, made on first use.

    Raises:
        NoModelFolderError: there is no such folder.
        EngineEnvError: the demo model could not be made.
    """
    if name == "demo":
        from tracekit.demo.model import ensure_demo_model
        from tracekit.engines.talk import Talk

        with Talk() as talk:
            return ensure_demo_model(talk)
    if not Path(name).is_dir():
        raise NoModelFolderError(name)
    return Path(name).absolute()
