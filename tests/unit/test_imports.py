"""The import directions of the design: each package, imported in a fresh interpreter, must not drag in the others."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "vllm", "click", "pyarrow", "grpc", "google.protobuf", "numpy"}
ROOMS = "trace rpc recorder engines demo jobs scoring replay diagnose audit report cli".split()
OURS = {f"tracekit.{name}" for name in ROOMS} | {"tracekitd"}

# package -> what it may import beside the standard library, tracekit.errors and tracekit.tables
ALLOWED = {
    "tracekit": set(),
    "tracekit.trace": {"pyarrow", "numpy"},
    "tracekit.rpc": {"grpc", "google.protobuf", "numpy"},
    "tracekit.recorder": {"tracekit.rpc", "grpc", "google.protobuf", "numpy"},
    "tracekit.engines": set(),
    "tracekit.demo": {"tracekit.engines"},
    "tracekit.jobs": {"tracekit.rpc", "grpc", "google.protobuf"},
    "tracekit.scoring": {"torch", "transformers", "numpy", "tracekit.diagnose"},
    "tracekit.replay": {
        "tracekit.trace",
        "tracekit.scoring",
        "tracekit.diagnose",
        *"torch transformers numpy pyarrow".split(),
    },
    "tracekit.diagnose": {"numpy"},
    "tracekit.audit": {"tracekit.trace", "numpy", "pyarrow"},
    "tracekit.report": {"tracekit.diagnose", "numpy"},
    "tracekit.cli": OURS | {"click"},
    "tracekitd": {"tracekit.trace", "tracekit.rpc", "grpc", "google.protobuf", "numpy", "pyarrow"},
}

# what a light start must not pull in, though the package as a whole may use it
LAZY = {"tracekit.cli": HEAVY - {"click"}}


def modules_of(package: str) -> list[str]:
    found = importlib.import_module(package)
    names = [m.name for m in pkgutil.walk_packages(found.__path__, f"{package}.")] if package != "tracekit" else []
    return [package, *(n for n in names if not n.endswith("__main__"))]


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_the_design_allows(package: str) -> None:
    program = f"""
import importlib, sys
for name in {modules_of(package)!r}:
    importlib.import_module(name)
print("\\n".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    forbidden = (HEAVY | OURS) - ALLOWED[package] - {package} | LAZY.get(package, set())
    dragged_in = {f for f in forbidden if f in loaded}
    assert not dragged_in, f"{package} imports {sorted(dragged_in)}"
