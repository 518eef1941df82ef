"""What `import tracekit` gives people, and that it costs nothing before it is used."""

import inspect
import subprocess
import sys

import pytest

import tracekit
from tracekit import errors


def fresh(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_tracekit_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'pyarrow', 'torch', 'grpc', 'google.protobuf', 'click'}"
    assert fresh(f"import sys, tracekit; dir(tracekit); print({heavy} & set(sys.modules))") == "set()"


def test_all_that_is_public_is_there_and_listed() -> None:
    for name in tracekit.__all__:
        assert getattr(tracekit, name) is not None
        assert name in dir(tracekit)
    raised = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert raised <= set(tracekit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'spool'"):
        _ = tracekit.spool


@pytest.mark.parametrize(
    "order",
    [
        "import tracekit; call = tracekit.replay; import tracekit.replay.runner as runner",
        "import tracekit.replay.runner as runner; import tracekit; call = tracekit.replay",
        "from tracekit.replay import runner; from tracekit import replay as call",
        "from tracekit import replay as call; import tracekit.replay.runner; runner = tracekit.replay.runner",
    ],
)
def test_replay_is_called_and_is_a_package_in_any_order_of_imports(order: str) -> None:
    program = f"""
{order}
import inspect
assert inspect.signature(call) == inspect.signature(runner.replay)
try:
    call("no-such-trace", expect="logits")
except Exception as error:
    print(type(error).__name__, error)
"""
    assert fresh(program) == "UsageError expect must be raw or processed, not logits"
