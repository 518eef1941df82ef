"""Ray for an engine's environment that has none: in a folder of its own, found through PYTHONPATH."""

from collections.abc import Callable
from pathlib import Path

from tracekit import cache
from tracekit.engines.env import EngineEnv
from tracekit.engines.uvtool import pip_install

# what else Ray needs, vLLM has
PACKAGES = ("ray==2.48.0", "msgpack==1.1.1")


def ray_for(env: EngineEnv, progress: Callable[[str], None]) -> Path:
    """Return the folder, filled first if it is not there."""
    folder = cache.cache_dir() / "tests" / f"ray-{env.name}-{cache.short_hash(*PACKAGES, str(env.python))}"
    with cache.locked(folder, progress):
        if cache.read_marker(folder) is None:
            cache.remove_folder(folder)
            pip_install(env.python, ["--target", str(folder), *PACKAGES], progress)
            cache.write_marker(folder, {"packages": PACKAGES})
    return folder
