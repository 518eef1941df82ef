"""The package sources of the user's pip reach uv."""

import sys

import pytest

from tracekit.engines import uvtool
from tracekit.errors import EngineEnvError

LISTING = """\
:env:.find-links='/from/env'
global.find-links='/wheels'
global.index-url='https://mirror.example/simple'
global.extra-index-url='file:///one/simple file:///two/simple'
install.index-url='https://stronger.example/simple'
global.cert='/certs.pem'
download.index-url='https://not-for-install.example/simple'
nonsense
"""


def test_pip_settings_are_read_in_pips_order_of_strength():
    assert uvtool.parse_pip_config(LISTING) == {
        "find-links": "/from/env",
        "index-url": "https://stronger.example/simple",
        "extra-index-url": "file:///one/simple file:///two/simple",
        "cert": "/certs.pem",
    }


def test_settings_become_flags_of_uv():
    settings = {
        "find-links": "/wheels\n/other",
        "index-url": "https://i.example/simple",
        "extra-index-url": "file:///one file:///two",
        "no-index": "true",
        "trusted-host": "i.example",
    }
    assert uvtool.source_flags(settings, {}, "https://torch.example/cpu") == [
        "--no-index",
        *("--default-index", "https://i.example/simple"),
        *("--index", "https://torch.example/cpu", "--index", "file:///one", "--index", "file:///two"),
        *("--find-links", "/wheels", "--find-links", "/other"),
        *("--allow-insecure-host", "i.example"),
    ]
    assert uvtool.source_flags({}, {}) == []


def test_uvs_own_variables_win():
    settings = {"find-links": "/wheels", "index-url": "https://i.example", "extra-index-url": "file:///one"}
    environ = {"UV_FIND_LINKS": "/mine", "UV_DEFAULT_INDEX": "https://mine.example", "UV_INDEX": "https://mine.example"}
    assert uvtool.source_flags(settings, environ) == []


def test_certificate_and_proxy_are_handed_on_unless_set():
    settings = {"cert": "/certs.pem", "proxy": "http://proxy.example"}
    assert uvtool.source_environ(settings, {}) == {"SSL_CERT_FILE": "/certs.pem", "ALL_PROXY": "http://proxy.example"}
    assert uvtool.source_environ(settings, {"SSL_CERT_FILE": "/a", "HTTPS_PROXY": "b"}) == {}


def test_environment_variables_of_pip_are_seen_without_pip(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PIP_FIND_LINKS", "/from/variable")
    assert uvtool.pip_settings()["find-links"] == "/from/variable"


def test_a_missing_uv_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(EngineEnvError, match="-m pip install uv"):
        uvtool.uv_binary()


def test_uv_gets_a_cache_of_ours_where_home_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "disk"))
    assert uvtool.own_cache({}) == {}
    monkeypatch.setattr(uvtool.os, "access", lambda path, mode: False)  # root may write everywhere
    assert uvtool.own_cache({}) == {"UV_CACHE_DIR": str(tmp_path / "disk" / "uv")}
    assert uvtool.own_cache({"XDG_CACHE_HOME": str(tmp_path / "x")}) == {"UV_CACHE_DIR": str(tmp_path / "disk" / "uv")}
    assert uvtool.own_cache({"UV_CACHE_DIR": "/mine"}) == {}
