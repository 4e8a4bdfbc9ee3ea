"""Set before torch is loaded: its threads sleep while they wait for each other.

By default they spin, which is a little faster on an idle machine and ruinous on a busy one: 200
updates took 5 s this way and over 100 s spinning, beside other work on two cores.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
