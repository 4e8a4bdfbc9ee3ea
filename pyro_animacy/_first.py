"""Set before torch is loaded: its threads, and how the command line loads.

torch's threads spin briefly for each other, and then sleep. By default they spin on, which is
ruinous on a busy machine: beside other work on two cores 200 updates took over 100 s. To sleep at
once costs the short steps of a small model four times their time on an idle one (83 ms for 18).
Spinning for 10,000 turns first is no slower than spinning on when idle (3,000 updates in 20 s), and
beside two busy processes as fast as one thread (600 updates in 16 s; with 30,000 turns, 23 and
124 s).

To load everything takes seconds. Until `cli.main` is there to answer, Ctrl-C ends the command line
as SIGTERM does, without a traceback. Meanwhile no garbage is looked for, which would take a tenth
of the time: what is loaded stays. A program that imports this package is left as it is.
"""

import gc
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

program = (sys.argv or [""])[0]  # of python -m it is "-m" while the package is imported
as_module = program == "-m" and any(word.startswith("pyro_animacy") for word in sys.orig_argv)
command_line = as_module or Path(program).stem == "pyro-animacy"
if command_line:
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
