"""Pyro probabilistic programs for how a scene of moving bodies goes on."""
