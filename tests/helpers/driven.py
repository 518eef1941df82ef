"""A real engine that does what a test says, in an environment without the recorder, and how it is attached to."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from helpers.engine import JOBS, engine_environ, wait_for
from tracekit.engines.env import EngineEnv, ensure
from tracekit.jobs import attaching
from tracekit.jobs.recorder_wheel import recorder_wheel
from tracekit.recorder.settings import Options
from tracekit.rpc.credentials import Access


def untouched(env: EngineEnv, folder: Path) -> Path:
    """The python of an environment that has all packages of this one, but for the recorder."""
    (site,) = env.python.parents[1].glob("lib/python3.*/site-packages")
    bare = folder / "bare" / "lib" / site.parent.name / "site-packages"
    bare.mkdir(parents=True)
    for package in site.iterdir():
        if "tracekit" not in package.name:
            (bare / package.name).symlink_to(package)
    (folder / "bare" / "pyvenv.cfg").write_bytes((env.python.parents[1] / "pyvenv.cfg").read_bytes())
    (folder / "bare" / "bin").mkdir()
    (folder / "bare" / "bin" / "python").symlink_to(env.python.resolve())
    return folder / "bare" / "bin" / "python"


class Driven:
    """One engine; each of its recordings has a daemon of its own."""

    def __init__(self, name: str, model: Path, folder: Path, **environ: str) -> None:
        self.name, self.attach, self.log = name, folder / "attach", folder / "log.txt"
        env = ensure(name, lambda _text: None)
        told = {"TRACEKIT_ATTACH": str(self.attach), "PYTHONPATH": str(recorder_wheel()), **environ}
        answers, theirs = os.pipe()
        argv = [untouched(env, folder), "-P", JOBS / "driven.py", model, theirs]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, argv)),
                env=engine_environ(env, **told),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                pass_fds=[theirs],
            )
        os.close(theirs)
        self.answers = os.fdopen(answers)
        assert self.answer() == "ready"

    def say(self, word: str, **arguments: Any) -> None:
        """Tell it to do something, and do not wait for the answer."""
        assert self.process.stdin is not None
        print(json.dumps([word, arguments]), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        line = self.answers.readline()
        assert line, self.log.read_text()[-4000:]
        return json.loads(line)

    def do(self, word: str, **arguments: Any) -> Any:
        self.say(word, **arguments)
        return self.answer()

    def tell(self, action: str, options: Options | None = None, timeout_secs: float = 2.5) -> dict[str, Any]:
        """Give it an order, which waits for its next step."""
        engines = wait_for(lambda: attaching.find(self.attach), "an engine that takes orders")
        (state,) = attaching.tell(self.attach, engines, action, options, timeout_secs)
        assert state["answered"], state
        return state

    def start(self, address: str, **options: Any) -> None:
        """Record it from its next step on."""
        state = self.tell("start", Options(address, Access(), **options))
        assert not state["error"], state

    def stop(self) -> None:
        """Record it no longer, from its next step on; then everything is delivered."""
        state = self.tell("stop")
        if state["state"] != "dormant":  # workers are to be told, which takes a step
            self.do("add", name=f"last-{state['order']}", prompt=[7, 8, 9], max_tokens=1)
            self.do("steps")
        wait_for(lambda: self.tell("look")["state"] == "dormant", "the end of the recording")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.answers.close()
