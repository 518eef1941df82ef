"""Real engine environments: whole, reused, and with the recorder in them without a package moved."""

import json
import os
import subprocess
import sys

import pytest

from tracekit.engines import env, recipes
from tracekit.engines.env import EngineEnv

pytestmark = pytest.mark.engine


def ask(found: EngineEnv, program: str) -> str:
    done = subprocess.run([found.python, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_environment_holds_its_vllm_and_the_recorder(v0_env, v1_env, latest_env):
    program = """
import importlib.metadata as m, grpc, google.protobuf, numpy, tracekit.recorder.plugin, tracekit.rpc
print([e.name for e in m.entry_points(group="vllm.general_plugins") if e.value == "tracekit.recorder.plugin:register"])
"""
    for found, version in ((v0_env, "0.8.5.post2"), (v1_env, "0.18.1"), (latest_env, "0.32.0")):
        assert found.vllm_version == version
        assert ask(found, program) == "['tracekit']"


def test_installing_the_recorder_moved_no_package(v0_env, v1_env, latest_env):
    program = """
import importlib.metadata as m, json
own = [d for d in m.distributions() if d.name == "vllm" and d.read_text("INSTALLER") == "tracekit\\n"]  # a second name
print(json.dumps({d.name.lower().replace("_", "-").replace(".", "-"): d.version for d in m.distributions()
                  if d.name not in [o.name for o in own]}))
"""
    for found in (v0_env, v1_env, latest_env):
        installed = json.loads(ask(found, program))
        lock, nvidia = recipes.locks_of(found.name, found.variant)
        python = ".".join(ask(found, "import sys; print(*sys.version_info[:2])").split())
        pinned = {}
        for line in lock.read_text().splitlines() + (nvidia.read_text().splitlines() if nvidia else []):
            requirement, _, marker = line.partition(" ; ")
            if not line.startswith("#") and (not marker or f"'{python}'" in marker):
                name, _, version = requirement.partition("==")
                pinned[name.lower()] = version
        differing = {
            name: version
            for name, version in installed.items()
            if name != "tracekit-rl" and version.partition("+")[0] != pinned.get(name)
        }
        assert differing == {}
        assert {"torch", "transformers", "grpcio", "protobuf", "numpy"} <= installed.keys()


def test_a_second_ensure_reuses_the_environment(v1_env):
    said = []
    assert env.ensure("v1", said.append) == v1_env
    assert said == []


def test_the_command_lists_what_is_there(v1_env, latest_env):
    command = [sys.executable, "-m", "tracekit", "engine", "list"]
    rows = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    ready = {row["name"]: row for row in rows if row["state"] == "ready"}
    assert ready["v1"]["vllm"] == "0.18.1" and ready["latest"]["vllm"] == "0.32.0"
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ready["v1"]["path"] in table


def test_an_unknown_engine_ends_with_one_sentence_and_exit_2():
    done = subprocess.run([sys.executable, "-m", "tracekit", "engine", "install", "v9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "tracekit: error: unknown engine 'v9': choose one of v0, v1, latest\n"


def test_an_environment_given_by_its_python_is_the_same_engine(v1_env):
    own = env.from_python(v1_env.python)
    assert own.vllm_version.partition("+")[0] == "0.18.1"
    assert own.python == v1_env.python


def test_what_the_engine_refuses_is_one_line(v1_env, tmp_path):
    job = {"model": str(tmp_path / "no-model"), "prompts": [{"prompt": "x"}], "output": str(tmp_path / "view.jsonl")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [v1_env.python, "-m", "tracekit.jobs.rollout", str(tmp_path / "job.json")]
    done = subprocess.run(command, env={**os.environ, **v1_env.environ}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("tracekit rollout: error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "view.jsonl").exists()
