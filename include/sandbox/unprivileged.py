"""PostgreSQL refuses to run as root, so a sandbox started by root runs it as somebody else, without opening anybody's folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Account:
    """Under whose name a program runs."""

    prefix: tuple[str, ...]  #: the command that changes the identity, before the program's own
    uid: int  #: owner of the files the program writes, as the rest of the system sees it
    gid: int
    switch: bool = False  #: whether Python itself changes the identity
    needs_copies: bool = False  #: whether the programs must be copied to where this account can read them

    def run(
        self, command: Sequence[str], *, errors_to: int | IO[bytes] = subprocess.STDOUT, own_session: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its output; our environment does not reach it (PGDATA, PGPORT or a locale would count)."""
        return subprocess.run(
            [*self.prefix, *command],
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors_to,
            text=True,
            errors="replace",
            check=False,
            start_new_session=own_session,
            user=self.uid if self.switch else None,
            group=self.gid if self.switch else None,
            extra_groups=[] if self.switch else None,
        )

    def owns(self, path: Path) -> bool:
        return path.lstat().st_uid == self.uid

    def take(self, folder: Path) -> None:
        """Make everything in the folder this account's; only root can, for everybody else it is so already."""
        if os.geteuid() != 0:
            return
        for path in (folder, *folder.iterdir()):
            if not self.owns(path):
                for parent, folders, files in os.walk(path) if path != folder else ():
                    for name in (*folders, *files):
                        os.chown(Path(parent) / name, self.uid, self.gid, follow_symlinks=False)
                os.chown(path, self.uid, self.gid, follow_symlinks=False)


def accounts(parent: Path) -> Iterator[Account]:
    """The names under which PostgreSQL may run for a data folder below ``parent``, best first.

    For an ordinary user that is the user. For root: whoever owns ``parent`` (as after ``sudo``); then a user namespace in which root has
    another number, which can still reach all that is root's; where containers forbid that, an ordinary user with the right to read past
    closed folders, because the project may lie below a 0700 home; last, an ordinary user without that right.
    """
    if os.geteuid() != 0:
        yield Account((), os.geteuid(), os.getegid())
        return
    # initdb looks its user up: a number alone, without an entry in the password file, does not do.
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    users.sort(key=lambda user: user.pw_name != "nobody")
    if not users:
        return
    nobody, owner = users[0], parent.stat().st_uid
    user = next((user for user in users if user.pw_uid == owner), nobody)
    if user.pw_uid == owner:
        yield Account((), user.pw_uid, user.pw_gid, switch=True)
    if unshare := shutil.which("unshare"):
        yield Account((unshare, "--user", f"--map-user={nobody.pw_uid}", f"--map-group={nobody.pw_gid}"), 0, 0)
    if setpriv := shutil.which("setpriv"):
        identity = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
        rights = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
        yield Account((setpriv, *identity, *rights), user.pw_uid, user.pw_gid)
    yield Account((), user.pw_uid, user.pw_gid, switch=True, needs_copies=True)
