"""One thread unless a person says otherwise, and in time: before NumPy is there."""

from __future__ import annotations

import subprocess
import sys

from edgectl.one_thread import ONE_THREAD, use_one_thread


def test_what_a_person_has_set_stays() -> None:
    environment = {"OPENBLAS_NUM_THREADS": "4", "HOME": "/"}
    use_one_thread(environment)
    assert environment == {**ONE_THREAD, "OPENBLAS_NUM_THREADS": "4", "HOME": "/"}


def test_commands_are_in_time() -> None:
    """NumPy reads the environment once, when it is loaded: no command may need it before it runs."""
    code = "import sys, edgectl.cli; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
