"""Folders of compiled code: what others could have put there is not used, and a warning says once where and what to do."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from quire import caches


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's cache, and warnings as of a new process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caches._warn.cache_clear()
    caches._is_private.cache_clear()
    yield tmp_path / "cache"
    caches._warn.cache_clear()
    caches._is_private.cache_clear()


def found(mode, owner=None, group=12345):
    return os.stat_result((mode, 0, 0, 1, os.geteuid() if owner is None else owner, group, 0, 0, 0, 0))


def test_a_folder_is_made_for_its_user_alone(home, caplog):
    folder = caches.code_folder("kernels")
    assert folder == home.resolve() / "quire" / "kernels"
    assert {path.stat().st_mode & 0o777 for path in (home, folder.parent, folder)} == {0o700}
    assert caches.code_folder("kernels") == folder and not caplog.records


@pytest.mark.parametrize("which", ["cache", "cache/quire", "cache/quire/kernels"])
def test_a_folder_that_others_can_write_is_not_used_which_is_said_once(home, caplog, which):
    caches.code_folder("kernels")
    opened = home.parent / which
    opened.chmod(0o777)
    assert caches.code_folder("kernels") is None and caches.code_folder("kernels") is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and f"{opened.resolve()};" in record.getMessage()
    assert "XDG_CACHE_HOME" in record.getMessage()
    opened.chmod(0o755)
    assert caches.code_folder("kernels") is not None


def test_a_sticky_folder_may_be_above_but_is_not_for_code(home):
    folder = caches.code_folder("kernels")
    home.chmod(0o1777)
    assert caches.code_folder("kernels") == folder
    folder.chmod(0o1777)
    assert caches.code_folder("kernels") is None


@pytest.mark.parametrize("which", ["cache", "cache/quire", "cache/quire/kernels"])
def test_a_folder_of_another_user_is_not_used(home, monkeypatch, which):
    caches.code_folder("kernels")
    stat, foreign = Path.stat, (home.parent / which).resolve()

    def stat_of(path, **options):
        true = stat(path, **options)
        return os.stat_result((*true[:4], 54321, *true[5:])) if path == foreign else true

    monkeypatch.setattr(Path, "stat", stat_of)
    assert caches.code_folder("kernels") is None


def test_nothing_is_made_in_the_cache_of_another_user(home, monkeypatch):
    """As root in somebody's home, which sudo leaves to one: they could not use what root makes there."""
    home.mkdir()
    monkeypatch.setattr(caches, "is_closed", lambda found, is_above=False: not os.path.samestat(found, home.stat()))
    assert caches.code_folder("kernels") is None
    assert not list(home.iterdir())


def test_a_link_to_another_place_is_followed(home, tmp_path):
    home.mkdir()
    (home / "quire").symlink_to(tmp_path / "elsewhere")
    folder = caches.code_folder("kernels")
    assert folder == tmp_path.resolve() / "elsewhere" / "kernels" and folder.is_dir()
    folder.parent.chmod(0o777)
    assert caches.code_folder("kernels") is None


def test_owners_to_trust_are_this_user_and_root():
    assert caches.is_closed(found(0o100600)) and caches.is_closed(found(0o100644, owner=0))
    assert not caches.is_closed(found(0o100644, owner=54321)) and not caches.is_closed(found(0o100666))
    assert not caches.is_closed(found(0o041777)) and caches.is_closed(found(0o041777), is_above=True)


def test_folders_above_that_a_user_namespace_has_no_owner_for(monkeypatch, tmp_path):
    (tmp_path / "inside").write_text("      1000       1000          1\n")
    (tmp_path / "whole").write_text("         0          0 4294967295\n")
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    assert caches._unmapped(tmp_path / "inside") == (overflow,)
    assert caches._unmapped(tmp_path / "whole") == caches._unmapped(tmp_path / "nothing") == ()
    monkeypatch.setattr(caches, "_unmapped", lambda: (overflow,))
    assert caches.is_closed(found(0o040755, owner=overflow), is_above=True)
    assert not caches.is_closed(found(0o040755, owner=overflow))
    assert not caches.is_closed(found(0o040777, owner=overflow), is_above=True)


@pytest.mark.parametrize(
    ("name", "members", "primary", "closed"),
    [
        ("anna", [], 12345, True),
        ("anna", ["anna"], 12345, True),
        ("anna", ["anna", "bert"], 12345, False),
        ("staff", [], 12345, False),
        ("anna", [], 99, False),
    ],
)
def test_a_group_may_write_if_nobody_else_is_in_it(monkeypatch, name, members, primary, closed):
    monkeypatch.setattr(pwd, "getpwuid", lambda user_id: SimpleNamespace(pw_name="anna", pw_gid=primary))
    monkeypatch.setattr(grp, "getgrgid", lambda group_id: SimpleNamespace(gr_name=name, gr_mem=members))
    assert caches.is_closed(found(0o040775)) is closed


def test_users_that_the_system_has_no_name_for_have_no_group_of_their_own(monkeypatch):
    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert not caches.is_closed(found(0o040775)) and caches.is_closed(found(0o040755))


def test_what_is_kept_is_read(home):
    folder = caches.code_folder("kernels")
    before = os.umask(0)
    try:
        caches.keep(folder / "a", b"code")
    finally:
        os.umask(before)
    assert (folder / "a").stat().st_mode & 0o777 == 0o600 and caches.read(folder / "a") == b"code"
    caches.keep(folder / "a", b"other")
    assert caches.read(folder / "a") == b"other" and [path.name for path in folder.iterdir()] == ["a"]


def test_files_of_others_are_not_read(home):
    folder = caches.code_folder("kernels")
    caches.keep(folder / "a", b"code")
    (folder / "link").symlink_to(folder / "a")
    assert caches.read(folder / "link") is None and caches.read(folder / "none") is None
    (folder / "a").chmod(0o666)
    assert caches.read(folder / "a") is None


def test_what_cannot_be_kept_leaves_nothing(home):
    folder = caches.code_folder("kernels")
    (folder / "a").mkdir()
    with pytest.raises(OSError):
        caches.keep(folder / "a", b"code")
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_is_said_once(home, caplog):
    home.write_text("a file where a folder should be")
    assert caches.code_folder("kernels") is None and caches.code_folder("kernels") is None
    (record,) = caplog.records
    assert str(home) in record.getMessage() and "XDG_CACHE_HOME" in record.getMessage()


def test_users_without_a_home_have_none(monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert caches.code_folder("kernels") is None and len(caplog.records) == 1
