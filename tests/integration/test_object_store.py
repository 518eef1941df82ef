"""Traces and weights behind `s3://` URLs, on two real servers; and what people read when something is wrong there."""

import signal
import time
from pathlib import Path

import pytest

from helpers.factories import make_tables, write_trace
from helpers.stores import ENVIRON, StoreServer
from tracekit.cli.main import main
from tracekit.errors import NoSuchObjectError, StoreError, TraceTruncatedError
from tracekit.objects import store as objects
from tracekit.objects.fetch import local_file, local_folder
from tracekit.trace.reader import open_trace

PATIENCE_SECS = 60  # "not minutes", on a slow and busy machine


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path):
    """The environment of an AWS client, and a cache of the test's own."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["moto", "rclone"])
def store(request, client, tmp_path):
    with StoreServer(request.param, tmp_path / "store") as server:
        yield server


@pytest.fixture
def rclone(client, tmp_path):
    with StoreServer("rclone", tmp_path / "store") as server:
        yield server


@pytest.fixture
def sealed(tmp_path) -> Path:
    write_trace(tmp_path / "t.arrow", [make_tables()])
    return tmp_path / "t.arrow"


@pytest.fixture
def tracekit(capsys):
    """Runs the command line in this process; returns exit code, stdout, stderr."""

    def run(*args):
        with pytest.raises(SystemExit) as done:
            main([*map(str, args)])
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return run


@pytest.fixture
def meanwhile(monkeypatch):
    """Lets something happen before each piece of a download but the first; the pieces are small."""
    piece = objects.Store._piece

    def arrange(happen):
        def slow(self, source, stored, target, offset):
            if offset:
                happen()
            return piece(self, source, stored, target, offset)

        monkeypatch.setattr(objects, "_PIECE_BYTES", 1000)
        monkeypatch.setattr(objects, "_AT_ONCE", 1)
        monkeypatch.setattr(objects.Store, "_piece", slow)

    return arrange


def files_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("given", ["query", "environment"])
def test_every_command_reads_a_trace_where_it_is(store, sealed, tracekit, tmp_path, monkeypatch, given):
    url = store.put("7/my trace.arrow", sealed.read_bytes())
    if given == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        url = url.partition("?")[0]
    folder = ("--parquet", tmp_path / "out")
    for command, *rest in (["info", "--json"], ["doctor"], ["lint"], ["cat", "tokens"], ["export", *folder]):
        code, out, err = tracekit(command, sealed, *rest)
        if command == "export":
            folder[1].rename(tmp_path / "first")
        assert tracekit(command, url, *rest) == (code, out.replace(str(sealed), url), err)
        assert out


def test_an_object_is_fetched_once_for_as_long_as_it_stays_the_same(store, sealed, tmp_path):
    url = store.put("t.arrow", sealed.read_bytes())
    before = open_trace(url).table("tokens")
    fetched = files_in(tmp_path / "cache")
    assert open_trace(url).table("tokens") == before and files_in(tmp_path / "cache") == fetched
    other = sealed.read_bytes()[::-1]  # as long, at about the same time
    assert local_file(store.put("t.arrow", other)).read_bytes() == other


def test_of_a_checkpoint_only_what_transformers_reads_is_fetched(store, tmp_path):
    read = {"config.json", "model-1.safetensors", "model.safetensors.index.json", "tokenizer.model", "merges.txt"}
    for name in (*read, "optimizer.pt", "pytorch_model.bin", "global_step1/x.json", ".part.safetensors"):
        store.put(f"step-1/{name}", name.encode() * 1000)
    folder = local_folder(store.url("step-1/"))
    assert folder.name == "step-1"
    assert {path.name for path in folder.iterdir()} == {*read, "tracekit-complete.json"}
    assert all((folder / name).read_bytes() == name.encode() * 1000 for name in read)
    assert local_folder(store.url("step-1")) == folder


def refused(tracekit, *args) -> str:
    begin = time.monotonic()
    code, out, err = tracekit(*args)
    assert (code, out) == (1, "") and err.startswith("tracekit: error: ") and err.count("\n") == 1, err
    assert time.monotonic() - begin < PATIENCE_SECS
    return err


def test_what_is_not_there_is_one_sentence(store, tracekit):
    assert "there is no such object: s3://runs/none.arrow" in refused(tracekit, "info", store.url("none.arrow"))
    assert "there is no such" in refused(tracekit, "info", store.url("t.arrow", bucket="nobody"))
    store.put("folder/config.txt", b"")
    assert "there is no such object" in refused(tracekit, "info", store.url("folder"))
    with pytest.raises(NoSuchObjectError, match=r"no model folder \(nothing called config\.json\)"):
        local_folder(store.url("folder"))
    with pytest.raises(NoSuchObjectError, match="no such"):
        local_folder(store.url("nothing"))
    with pytest.raises(NoSuchObjectError, match="no such bucket"):
        local_folder(store.url("nothing", bucket="nobody"))


def test_half_an_object_is_one_sentence_that_names_its_url(store, sealed):
    url = store.put("t.arrow", sealed.read_bytes()[:-100])
    with pytest.raises(TraceTruncatedError, match="ends before its own end") as caught:
        open_trace(url)
    assert str(caught.value).endswith(url)


def test_a_wrong_secret_is_one_sentence(rclone, sealed, tracekit, monkeypatch):
    url = rclone.put("t.arrow", sealed.read_bytes())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the object store refuses these credentials (ACCESS_DENIED;" in refused(tracekit, "info", url)
    with pytest.raises(StoreError, match="refuses these credentials"):
        local_folder(rclone.url("t"))


def test_a_server_that_is_dead_or_hangs_is_told_within_seconds(store, sealed, tracekit):
    url = store.put("t.arrow", sealed.read_bytes())
    if store.kind == "rclone":  # once is enough of these 10 seconds
        store.process.send_signal(signal.SIGSTOP)
        assert f"the object store at {store.endpoint} does not answer (" in refused(tracekit, "info", url)
    store.end()
    assert f"the object store at {store.endpoint} does not answer (" in refused(tracekit, "info", url)


def test_a_server_that_dies_amid_an_object_leaves_nothing_that_is_taken_for_whole(rclone, sealed, meanwhile, tmp_path):
    url = rclone.put("t.arrow", sealed.read_bytes())
    meanwhile(rclone.end)
    with pytest.raises(StoreError, match="does not answer"):
        local_file(url)
    assert not [name for name in files_in(tmp_path / "cache") if name.endswith("complete.json")]
    meanwhile(lambda: None)
    rclone.start()
    assert local_file(url).read_bytes() == sealed.read_bytes()


def test_an_object_that_changes_while_it_is_read_is_not_taken(rclone, sealed, meanwhile):
    url = rclone.put("t.arrow", sealed.read_bytes())
    meanwhile(lambda: rclone.put("t.arrow", sealed.read_bytes()[::-1]))
    with pytest.raises(StoreError, match=r"t\.arrow changed while it was being read"):
        local_file(url)
