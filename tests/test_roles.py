"""What every role has in common: it ends when it is told to."""

import signal
import subprocess
import sys

from service_helpers import linux

HANGS = """
import threading, time
from bandolero_service import ending
ending.END_WITHIN_S = 1
flag = ending.told_to_end()
print("ready", flush=True)
while not flag.wait(0.001):
    pass
threading.Thread(target=time.sleep, args=(60,)).start()  # the interpreter waits for it
"""


@linux
def test_a_role_that_cannot_end_is_ended() -> None:
    """A role that hangs after SIGTERM, even in the interpreter's own end, is killed soon."""
    with subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(30) == -signal.SIGALRM
