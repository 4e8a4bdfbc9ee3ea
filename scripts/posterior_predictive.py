"""Draw from a fitted run, and show forecasts over the recording: copy and edit.

Makes the three kinds of draws (reconstruct, forecast, generate), says what they hold, and writes a
figure: the paths given and recorded, and where the model thinks they could go.
"""

import argparse

import matplotlib

matplotlib.use("Agg")  # write files, open no window
from matplotlib import pyplot as plt

from pyro_animacy import Run, predict
from pyro_animacy.criticism.aligned import data_units
from pyro_animacy.criticism.plots import most_movement

SECONDS, SCENES = 2.0, 3  # of context, and again of forecast; scenes shown, each of another moment
COLOURS = ["#0072B2", "#D55E00", "#009E73"]


def main() -> None:
    """Draw and plot."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", nargs="?", default="runs/demo", help="folder of a fit")
    options.add_argument("--out", default="forecasts.png", help="figure to write")
    options.add_argument("--draws", type=int, default=60)
    given = options.parse_args()

    run = Run.load(given.run)
    heldout = run.heldout(run.recordings())
    moments = {*zip(heldout["recording"].values, heldout["start"].values, strict=True)}
    # Scenes of one moment share bodies; those of other moments come first.
    scenes = heldout.sel(trajectory=most_movement(heldout, min(SCENES, len(moments))))
    K = max(round(SECONDS * run.card.fps), run.card.config["history"])

    latents = predict(run, scenes, mode="reconstruct", draws=given.draws)["posterior"]["latent"]
    print("reconstruct: posterior latent", dict(latents.sizes))
    motion = predict(run, scenes, mode="generate", draws=given.draws)["posterior_predictive"]
    print("generate: posterior_predictive position", dict(motion["position"].sizes))
    forecasts = predict(run, scenes, mode="forecast", context=K, horizon=K, draws=given.draws)
    print("forecast: predictions position", dict(forecasts["predictions"]["position"].sizes))

    recorded = forecasts["observed_data"].dataset["position"]
    drawn = forecasts["predictions"].dataset["position"].isel(chain=0, time=slice(K - 1, None))
    units = data_units(scenes)
    names = list(scenes["trajectory"].values)
    figure, axes = plt.subplots(1, len(names), figsize=(10, 4), squeeze=False, layout="constrained")
    for axis, scene in zip(axes[0], names, strict=True):
        for body, colour in zip(recorded["body"].values, COLOURS, strict=False):
            path = recorded.sel(trajectory=scene, body=body).values
            futures = drawn.sel(trajectory=scene, body=body).transpose("space", "time", "draw")
            axis.plot(*futures.values, color=colour, alpha=0.12, lw=1)
            axis.plot(*path[:K].T, color=colour, lw=3, label=body)
            axis.plot(*path[K - 1 :].T, color="black", lw=1.3, ls=(0, (3, 1.5)))
        axis.set(title=scene, xlabel=f"x ({units})", ylabel=f"y ({units})")
        axis.set_aspect("equal", adjustable="datalim")
    axes[0, 0].plot([], [], color="black", lw=1.3, ls=(0, (3, 1.5)), label="what happened then")
    axes[0, 0].plot([], [], color="gray", lw=1, label=f"{given.draws} forecasts")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.savefig(given.out, dpi=110)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
