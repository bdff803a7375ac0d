"""What the services of a node share: a line in their log, a word to whoever is logged in, and the machine's own end.

None of them raises. A full disk or a terminal that hangs must not end what ends the bill. Standard library only.
"""

import contextlib
import shutil
import subprocess
import time


def say(text: str) -> None:
    """A line of the service's log."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


def warn(text: str) -> None:
    """To the log and to everybody who is logged in."""
    say(text)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if shutil.which("wall"):
            subprocess.run(["wall", text], check=False, capture_output=True, timeout=10)


def shut_down(why: str) -> None:
    """End this machine: cluster.yaml has EC2 terminate what shuts itself down. Returns before it has happened."""
    say(f"{why}: shutting this machine down, which terminates it")
    try:
        refused = subprocess.run(["sudo", "-n", "shutdown", "-h", "now"], check=False, timeout=30).returncode
    except (OSError, subprocess.SubprocessError) as error:
        say(f"it does not shut down: {error}")
    else:
        if refused:
            say(f"it does not shut down: exit code {refused}")
