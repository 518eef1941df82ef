"""How pytest-xdist shares tests out to processes: those of one recording stay together."""

from collections.abc import Mapping

from xdist.scheduler import LoadScopeScheduling

from tracekit.engines.recipes import RECIPES

# files whose tests share a recording
TOGETHER: Mapping[str, str] = {
    "tests/engine/test_cache_v0.py": "tests/engine/test_record_v0.py",
    "tests/engine/test_rerun_v0.py": "tests/engine/test_record_v0.py",
    "tests/engine/test_trainer_dump.py": "tests/engine/test_record_exact.py",
}


def group_of(nodeid: str) -> str:
    """The file, and of a test that runs on several engines which it is: each has recordings of its own.

    Example:
        "tests/engine/test_features.py::test_it[v1]" is of the group "tests/engine/test_features.py-v1".
    """
    path, _, test = nodeid.partition("::")
    engines = [part for part in test.partition("[")[2].rstrip("]").split("-") if part in RECIPES]
    return "-".join([TOGETHER.get(path, path), *engines])


class SharedRecordings(LoadScopeScheduling):  # type: ignore[misc]
    """Hands whole groups to whichever process is free, in the order of collection: engines come first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
