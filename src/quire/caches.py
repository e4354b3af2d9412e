"""Folders of the user's cache that hold code of ours. What is there is run, so nobody else may be able to put anything there."""

import grp
import logging
import os
import pwd
import stat
from functools import cache
from pathlib import Path
from secrets import token_hex

from quire import env

logger = logging.getLogger(__name__)


def code_folder(name: str) -> Path | None:
    """quire/`name` in the user's cache, made for this user alone if need be. None = it cannot be made, or others could put code there
    for us to run; once a process a warning says so."""
    try:
        path = (env.caches() / "quire" / name).resolve()
        open_part = _open_part(path)
        if open_part is None:  # else nothing is made: as root it would be what the home's user cannot use
            for part in (*reversed(path.parents), path):
                part.mkdir(mode=0o700, exist_ok=True)
            open_part = _open_part(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _warn(f"there is no folder for it: {error}", "let XDG_CACHE_HOME name a folder that can be written")
        return None
    if open_part is not None:
        remedy = (
            f"let XDG_CACHE_HOME name a folder that only you can write, or close that one to others and empty {path}"
        )
        _warn(f"other users could change what is in {open_part}", remedy)
        return None
    return path


def _open_part(path: Path) -> Path | None:
    """The innermost of a folder and those above it, as far as they are there, that others can change. Raises OSError."""
    there = (part for part in (path, *path.parents) if part.exists())
    return next((part for part in there if not is_closed(part.stat(), part != path)), None)


def is_closed(found: os.stat_result, is_above: bool = False) -> bool:
    """Whether only this user and root can change a file or folder. is_above: it is a folder above the one that matters."""
    may_write = found.st_mode & (stat.S_IWOTH | (0 if _is_private(found.st_gid) else stat.S_IWGRP))
    # In a sticky folder, as /tmp is, others make entries of their own and leave ours.
    owners = (0, os.geteuid(), *(_unmapped() if is_above else ()))
    return found.st_uid in owners and not (may_write and not (is_above and found.st_mode & stat.S_ISVTX))


def read(path: Path) -> bytes | None:
    """A file of ours; None = it is not there, or others could have made or changed it."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return file.read() if is_closed(os.fstat(file.fileno())) else None
    except OSError:
        return None


def keep(path: Path, data: bytes) -> None:
    """Writes a file of ours as a whole or not at all. Raises OSError."""
    part = path.with_name(f"{path.name}.{token_hex(8)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@cache
def _is_private(group_id: int) -> bool:
    """Whether a group is this user's own, with nobody else in it: many systems give everybody one, and let it write by default."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(group_id)
    except KeyError:
        return False
    return (group_id, group.gr_name) == (user.pw_gid, user.pw_name) and set(group.gr_mem) <= {user.pw_name}


@cache
def _unmapped(uid_map: Path = Path("/proc/self/uid_map")) -> tuple[int, ...]:
    """What a container in a user namespace, as Apptainer's are, shows as the owner of the machine's own folders: nobody inside is that."""
    try:
        if uid_map.read_text().split() != ["0", "0", str(2**32 - 1)]:
            return (int(Path("/proc/sys/kernel/overflowuid").read_text()),)
    except OSError:  # not Linux
        pass
    return ()


@cache
def _warn(why: str, remedy: str) -> None:
    logger.warning("compiled code is neither read nor kept, so starts take longer: %s; %s", why, remedy)
