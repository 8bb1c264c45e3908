"""Users of slots: no two workers of a machine have one at a time, whichever network they are in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="users of slots need Linux and root"
)

CLAIMING = "from workers.platforms.slot_users import claim; print(*claim(2)[0])"


@pytest.mark.parametrize("apart", [(), ("unshare", "--net")])
def test_what_one_worker_has_claimed_no_other_one_gets_until_it_ends(apart: tuple[str, ...]) -> None:
    from workers.platforms import slot_users

    if apart and (shutil.which(apart[0]) is None or subprocess.run([*apart, "true"], check=False).returncode):
        pytest.skip("this machine has no network namespaces")
    users, claims = slot_users.claim(2)
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            [*apart, sys.executable, "-c", CLAIMING], cwd=root, capture_output=True, text=True, check=True
        )
    finally:
        for each in claims:
            each.close()
    assert len(users) == 2
    assert not {*map(str, users)} & {*done.stdout.split()}
    again, claims = slot_users.claim(1)
    for each in claims:
        each.close()
    assert again[0] <= users[0]
