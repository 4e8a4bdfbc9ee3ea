"""What `scripts/bench.py` measures, one file a kind of contender."""
