"""Users without a name, a home, or one that can be written."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol.run.home import home_variables


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def unknown(number):
    raise KeyError(number)


def test_a_home_that_can_be_written_is_left_alone(tmp_path):
    assert home_variables({"HOME": str(tmp_path)}) == {}


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"HOME": "/nonexistent"}])
def test_an_unknown_user_without_a_home_gets_one(tmp_path, monkeypatch, environment):
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    found = home_variables(environment)
    assert Path(found["HOME"]).is_dir()
    assert Path(found["HOME"]).parent == tmp_path
    assert Path(found["HOME"]).stat().st_mode & 0o077 == 0
    assert found["USER"] == found["LOGNAME"] == f"user-{os.getuid()}"
    assert home_variables(environment) == found  # the same one the next time


def test_the_users_own_name_stays(monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert "USER" not in home_variables({"USER": "anna", "HOME": "/nonexistent"})


def test_no_variable_but_a_home_in_the_list_of_users(tmp_path, monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_dir=str(tmp_path)))
    assert home_variables({}) == {}


def test_a_home_that_can_only_be_read_stays_and_caches_go_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = home_variables({"HOME": str(tmp_path), "VLLM_CACHE_ROOT": "/mine"})
    assert "HOME" not in found
    assert "VLLM_CACHE_ROOT" not in found
    assert found["TRITON_CACHE_DIR"].startswith(str(tmp_path / "dynatok-home-"))


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    (tmp_path / f"dynatok-home-{os.getuid()}").mkdir()
    (tmp_path / f"dynatok-home-{os.getuid()}").chmod(0o777)
    found = home_variables({"HOME": "/nonexistent"})
    assert found["HOME"] != str(tmp_path / f"dynatok-home-{os.getuid()}")
