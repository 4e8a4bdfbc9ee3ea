"""Set before torch is loaded: its threads spin briefly for each other, and then sleep.

By default they spin on, which is ruinous on a busy machine: beside other work on two cores 200
updates took over 100 s. To sleep at once costs the short steps of a small model four times their
time on an idle one (83 ms for 18). Spinning for 30,000 turns first is as fast as spinning on when
idle (18 ms), and twice that beside a busy process (35 ms).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
