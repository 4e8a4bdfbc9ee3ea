"""Model criticism: statistics of motion, their plots, the report; without Pyro or torch."""
