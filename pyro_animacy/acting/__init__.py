"""Acting with the models: environments, replay, planners, PlaNet, Dreamer, directed displays."""
