"""What the daemon is told by a file: checked without being run, taken anew while it runs, never silently ignored."""

import json
import signal
import subprocess
import sys
import time

import pytest

from helpers.stores import ENVIRON, StoreServer
from helpers.wire import DaemonProcess, engine_id, numbered_tokens, rows_of_trace
from tracekit.errors import TracekitError, UsageError
from tracekit.recorder.stream import Stream
from tracekit.trace.index import read_index
from tracekitd.__main__ import load
from tracekitd.config import Config
from tracekitd.server import check, run


def write(folder, text: str) -> str:
    path = folder / "tracekitd.toml"
    path.write_text(text)
    return str(path)


def test_a_file_says_what_options_say_and_an_option_wins(tmp_path):
    path = write(tmp_path, 'listen = "unix:/run/d.sock"\nspool = "s"\ngrace = 3\ntoken-file = "t"\n')
    config = load({"config": path, "check_config": None, "grace": 5.0, "listen": None})
    assert config.listen == ("unix:/run/d.sock",) and config.grace == 5.0
    assert (str(config.spool), str(config.token_file), config.seal) == ("s", "t", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('spool = "s"', "names no listen"),
        ('listen = "unix:/d"', "names no spool"),
        ('listen = "unix:/d"\nspool = "s"\nport = 3', "unknown setting: port"),
        ('listen = "unix:/d"\nspool = 3', "spool cannot be 3"),
        ('listen = [1]\nspool = "s"', r"listen cannot be \[1\]"),
        ('listen = "unix:/d"\nspool = "s"\ngrace = -1', "grace cannot be -1"),
        ('listen = "unix:/d"\nspool = "s"\nlog = "xml"', "log is text or json"),
        ("listen = ", "not TOML"),
        ("listen = " + "[" * 10_000, "nested too deep"),
        ('listen = "unix:/d"\nspool = "s"\ngrace = ' + "9" * 400, "grace cannot be 9"),
        ('listen = "unix:/d"\nspool = "~nobody-of-that-name/s"', "spool cannot be '~nobody"),
        ('listen = ["unix:/d\\u0000"]\nspool = "s"', "listen cannot be"),
        ('listen = "unix:/d"\nspool = "s\\u0000"', "spool cannot be"),
    ],
)
def test_what_a_file_cannot_say(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        load({"config": write(tmp_path, text)})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('archive = "http://x"', "s3://BUCKET/KEY"),
        ('archive = "s3://[a/b"', "not a URL"),
        ('spool = "/dev/null"', "a folder, and this is none"),
        ('listen = "unix:/tmp/d.sock"', "must be yours alone"),
        ('metrics = "localhost:x"', "HOST:PORT"),
        ('seal = "/dev/null"', "exists already"),
    ],
)
def test_what_would_not_run_is_said_by_the_check_as_well(short_path, setting, words):
    """A bad archive was found once the writer ran, and left a process that waited for it."""
    name = setting.partition(" ")[0]
    base = {"listen": f'"unix:{short_path}/run/d.sock"', "spool": f'"{short_path}/s"'}
    text = "\n".join([setting, *(f"{key} = {value}" for key, value in base.items() if key != name)])
    config = load({"config": write(short_path, text)})
    for use in (check, run):
        with pytest.raises(TracekitError, match=words):
            use(config)
    assert not (short_path / "s").exists()


def test_check_config_prints_and_touches_nothing(short_path):
    path = write(short_path, f'listen = "unix:{short_path}/run/d.sock"\nspool = "{short_path}/spool"\n')
    argv = [sys.executable, "-m", "tracekit", "daemon", "--config", path, "--check-config"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout)["grace"] == Config.grace, done.stderr
    assert [found.name for found in short_path.iterdir()] == ["tracekitd.toml"]


@pytest.mark.parametrize("before", [[], ["nohup"]])
def test_sighup_takes_the_file_anew_and_loses_nothing(short_path, before):
    process = DaemonProcess(short_path)
    process.argv = before + process.argv
    process.argv += ["--config", write(short_path, 'log = "text"\n')]
    stream = Stream(process.address, engine_id())
    try:
        process.start()
        stream.put(numbered_tokens(0, 10))
        write(short_path, 'log = "json"\nmetrics = "127.0.0.1:1"\n')
        process.signal(signal.SIGHUP)
        while "read anew" not in process.stderr():
            time.sleep(0.02)
        last = json.loads(process.stderr().splitlines()[-1])
        assert last["message"] == "the settings were read anew; after a restart: metrics"
        write(short_path, "log = ")
        process.signal(signal.SIGHUP)
        while "the settings stay as they are" not in process.stderr():
            time.sleep(0.02)
        stream.put(numbered_tokens(10, 10))
        assert not stream.close(60).undelivered
        assert process.stop() == 0
    finally:
        process.end()


def test_sighup_changes_how_much_is_kept(short_path, tmp_path, monkeypatch):
    for name, value in {**ENVIRON, "TRACEKIT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    process = DaemonProcess(short_path, seal=False)
    with StoreServer("rclone", tmp_path / "store") as store:
        lines = f'archive = "{store.url("run")}"\nroll_bytes = 1\n'
        process.argv += ["--config", write(short_path, lines)]
        stream = Stream(process.address, engine_id())
        try:
            process.start()
            for start in range(0, 50, 10):
                stream.put(numbered_tokens(start, 10))
                while stream.totals().undelivered:
                    time.sleep(0.02)
            while not (index := read_index(process.spool)).parts or not all(p.archived for p in index.parts.values()):
                time.sleep(0.05)
            assert all(part.here for part in index.parts.values())
            write(short_path, lines + "keep_bytes = 1\n")
            process.signal(signal.SIGHUP)
            while any(part.here for part in read_index(process.spool).parts.values()):
                time.sleep(0.05)
            assert process.stderr().splitlines()[-1].endswith("the settings were read anew")
            assert len(rows_of_trace(process.spool, "tokens")) == 50
            assert not stream.close(60).undelivered and process.stop() == 0
            assert len(rows_of_trace(process.spool, "tokens")) == 50
        finally:
            process.end()
