"""What strangers wrote cannot steer a terminal."""

import subprocess
import sys

from helpers.factories import make_engine, make_tables, write_trace
from tracekit.plain import one_line, plain
from tracekit.trace.ledger import Loss
from tracekitd.log import say


def test_what_steers_is_shown():
    assert plain("a\x1b[2Jb\x07\x9b\x7f\u202e\ud800") == "a\\u001b[2Jb\\u0007\\u009b\\u007f\\u202e\\ud800"
    assert plain("Grüße\t漢字\r\n") == "Grüße\t漢字\r\n"


def test_a_line_stays_one(capfd):
    assert one_line("a\r\nb\x1b") == "a\\r\\nb\\u001b"
    assert "\n" not in str(Loss(0, 1, 1, "full\nverdict: clean", {"tokens": 1}))
    say("lost\ntracekitd: all is well")
    assert capfd.readouterr().err == "tracekitd: lost\\ntracekitd: all is well\n"


def test_no_command_sends_it_on(tmp_path):
    model = "\x1b]0;owned\x07\x9b31m"
    tables = make_tables(engine=make_engine(model=model, host=model))
    report = {"from_seq": [1], "to_seq": [1], "reason": [model], "rows": ["{}"]}
    write_trace(tmp_path / "t.arrow", [tables | {"losses": report}])
    for argv in (["info"], ["doctor"], ["cat", "engines"], ["cat", "losses", "--csv"], ["lint"]):
        argv = [
            sys.executable,
            "-c",
            "from tracekit.cli.main import main; main()",
            argv[0],
            tmp_path / "t.arrow",
            *argv[1:],
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert done.stdout and "Traceback" not in done.stderr
        assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout + done.stderr), argv
