"""All engine environments, those in the cache and those that are not built yet."""

from __future__ import annotations

from typing import Any

from tracekit import cache
from tracekit.engines import recipes
from tracekit.engines.build import RECORDER_MARKER


def list_envs() -> list[dict[str, Any]]:
    """Return one row for each engine and each other folder in the cache.

    `state` is ready, not installed, old (of an earlier lock file), or broken (half-built).
    """
    variant = recipes.variant_here()
    current = {recipes.folder_of(name, variant): name for name in recipes.RECIPES}
    present = sorted(path for path in (cache.cache_dir() / "engines").glob("*-*") if path.is_dir())
    rows = []
    for folder in [*current, *(path for path in present if path not in current)]:
        facts = cache.read_marker(folder) or {}
        name = current.get(folder) or str(facts.get("name") or folder.name.rpartition("-")[0])
        state = "not installed" if not folder.exists() else "broken" if not facts else "ready"
        if state == "ready" and folder not in current:
            state = "old"
        recipe = recipes.RECIPES.get(name)
        rows.append(
            {
                "name": name,
                "vllm": facts.get("vllm") or (recipe.vllm_version if recipe else ""),
                "variant": facts.get("variant") or variant,
                "state": state,
                "recorder": (cache.read_marker(folder, RECORDER_MARKER) or {}).get("version"),
                "path": str(folder),
            }
        )
    return rows
