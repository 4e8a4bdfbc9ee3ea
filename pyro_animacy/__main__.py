"""``python -m pyro_animacy``: the command line, as ``torchrun -m pyro_animacy`` starts it."""

import sys

from pyro_animacy.cli import main

sys.exit(main())
