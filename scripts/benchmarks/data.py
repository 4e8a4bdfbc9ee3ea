"""Reading a table, windows into batches, and draws from a model: ours beside what one would write.

Each returns its ways, ours first, after a check that they give the same; or, of windows, what they
are to be compared with.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from pyro.distributions import Normal
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.cases import Noise, given
from benchmarks.first_pyro import LEAST_RATE
from benchmarks.plain import PlainControlVAE
from pyro_animacy import (
    Batch,
    ControlVAEConfig,
    FitConfig,
    Run,
    Scale,
    ScaledELBO,
    make_trajectories,
    predict,
    preset,
    read_trajectories,
)
from pyro_animacy.data.windows import whole
from pyro_animacy.infer.checkpoint import ModelCard
from pyro_animacy.infer.loop import make_optimizer, stream
from pyro_animacy.infer.run import build
from pyro_animacy.infer.source import Draw, SceneSource
from pyro_animacy.infer.traced import Gradient

BODIES = ("red", "blue", "ball")
FPS = 25.0
Ways = Mapping[str, Callable[[], object]]


def walks(trajectories: int, frames: int) -> xr.Dataset:
    """Random walks of three bodies, in the schema."""
    x = np.random.default_rng(0).normal(size=(trajectories, frames, 3, 2)).cumsum(1).round(3)
    return make_trajectories(x, fps=FPS, body=BODIES, units="m", source="walks")


def _card(config: ControlVAEConfig, scale: Scale) -> ModelCard:
    """How a model of the walks is built."""
    return ModelCard("control_vae", asdict(config), scale, BODIES, ("x", "y"), FPS, units="m")


def csv(folder: Path, rows: int) -> Ways:
    """A long CSV of so many rows, read by ours into the schema and by pandas into a table."""
    trajectories = 10
    frames = rows // (3 * trajectories)
    x = walks(trajectories, frames)["position"].to_numpy()
    clip, frame, body = np.indices(x.shape[:3])
    table = pd.DataFrame(
        {
            "clip": clip.ravel(), "frame": frame.ravel(), "id": np.array(BODIES)[body.ravel()],
            "x": x[..., 0].ravel(), "y": x[..., 1].ravel(),
        }
    )  # fmt: skip
    path = folder / "long.csv"
    table.to_csv(path, index=False)
    read = read_trajectories(path, fps=FPS, units="m")
    named = read.sel(body=list(BODIES), trajectory=[str(i) for i in range(trajectories)])
    if not np.array_equal(named["position"].to_numpy(), x):
        raise SystemExit("the reader does not give back what was written")
    return {
        "ours": lambda: read_trajectories(path, fps=FPS, units="m"),
        "pandas.read_csv alone": lambda: pd.read_csv(path),
    }


def windows(config: FitConfig) -> tuple[Ways, int]:
    """The batches that training draws together, beside its steps on them; and their windows."""
    options = config.train
    source = SceneSource(walks(60, 500), config)
    torch.manual_seed(0)
    model, guide = build(source.card)
    modules = nn.ModuleList([model, guide])
    optimizer = make_optimizer(modules.parameters(), replace(options, learning_rate=LEAST_RATE))
    gradient = Gradient(ScaledELBO(scale=1 / source.batch_size), model, guide, traced=True)

    def drawn(step: int) -> Draw:
        generator = torch.Generator().manual_seed(stream(0, step))
        size = (source.batch_size,)
        return torch.randint(len(source.windows), size, generator=generator), generator

    batches = source.batches(map(drawn, count()))

    def together() -> list[Batch]:
        return [batch for batch, _ in islice(batches, source.ahead)]

    held = together()

    def steps() -> None:
        for batch in held:
            gradient(batch)
            nn.utils.clip_grad_norm_(modules.parameters(), options.clip_norm)
            optimizer.step()

    return {"ours": together, "the steps that take them": steps}, len(held) * source.batch_size


class Motion:
    """Forecasts of the preset ``small`` without rest, untrained: 100 draws of 50 steps, 20 scenes.

    Args:
        draws: Of each recording.
        steps: Of each forecast.
    """

    def __init__(self, draws: int = 100, steps: int = 50) -> None:
        self.draws, self.steps = draws, steps
        self.dataset = walks(20, 80)
        self.scale = Scale.of(self.dataset)
        config = replace(preset("small").model, rest=False)
        card = _card(config, self.scale)
        torch.manual_seed(0)
        model, guide = build(card)
        settings = {"model": card.config}
        self.run = Run(Path(), model, guide, card, settings, summary={})
        self.plain = PlainControlVAE(model, guide)
        self.history = config.history
        self.low, self.high = model.low, model.high

    @property
    def trajectory_steps(self) -> int:
        """Steps drawn, of all trajectories."""
        return self.draws * self.dataset.sizes["trajectory"] * self.steps

    def ours(self) -> xr.DataTree:
        """By the library's command of one line."""
        return predict(
            self.run, self.dataset, mode="forecast", draws=self.draws, horizon=self.steps,
            progress=False,
        )  # fmt: skip

    @torch.no_grad()
    def by_hand(self, noise: Noise | None = None) -> np.ndarray:
        """By a loop in PyTorch: (draws, trajectories, steps, D) in data units."""
        given = whole(self.dataset.isel(time=slice(self.history)), self.scale)
        x = given.position.repeat(1, self.draws, 1)
        if noise is None:
            shape = self.steps, x.shape[1]
            noise = Noise(torch.randn(*shape, self._latent), torch.randn(*shape, x.shape[2]))
        s, past, low, high = self._start(x)
        states = []
        for t in range(self.steps):
            prior, policy = self._step(s, past)
            z = prior[0] + prior[1] * noise.latent[t]
            mean, scale = policy(z)
            after = (s + mean + scale * noise.action[t]).clamp(low, high)
            s, past = after, [after - s, *past][: self.history - 1]
            states.append(s)
        path = torch.stack(states).unflatten(1, (self.draws, -1)).permute(1, 2, 0, 3).numpy()
        return path * np.float32(self.scale.unit) + self._origin

    @torch.no_grad()
    def predictive(self, *, parallel: bool) -> np.ndarray:
        """By `pyro.infer.Predictive` on the model written as a program."""
        x = whole(self.dataset.isel(time=slice(self.history)), self.scale).position

        def program() -> None:
            s, past, low, high = self._start(x)
            with pyro.plate("trajectory", x.shape[1]):
                for t in pyro.markov(range(self.steps)):
                    prior, policy = self._step(s, past)
                    z = pyro.sample(f"latent_{t}", Normal(*prior).to_event(1))
                    a = pyro.sample(f"action_{t}", Normal(*policy(z)).to_event(1))
                    after = (s + a).clamp(low, high)
                    s, past = after, [after - s, *past][: self.history - 1]
                    pyro.deterministic(f"state_{t}", s, event_dim=1)

        names = [f"state_{t}" for t in range(self.steps)]
        drawn = Predictive(program, num_samples=self.draws, return_sites=names, parallel=parallel)()
        path = torch.stack([drawn[name] for name in names], -2).numpy()
        return path * np.float32(self.scale.unit) + self._origin

    def check(self) -> None:
        """All draw the same motion of the same noise.

        Raises:
            SystemExit: If one does not.
        """
        B = self.draws * self.dataset.sizes["trajectory"]
        torch.manual_seed(2)
        noise = Noise(torch.randn(self.steps, B, self._latent), torch.randn(self.steps, B, 6))
        # one draw after another, each all its steps
        by_draw = Noise(*(
            n.unflatten(1, (self.draws, -1)).transpose(0, 1).flatten(0, 1) for n in noise
        ))  # fmt: skip
        expected = self.by_hand(noise)
        found = {}
        with given(noise):
            tree = self.ours()
        drawn = tree["predictions/position"].to_numpy()[0, :, :, self.history :]
        found["ours"] = drawn.reshape(*drawn.shape[:3], -1)
        with given(noise):
            found["Predictive, parallel"] = self.predictive(parallel=True)
        with given(by_draw):
            found["Predictive"] = self.predictive(parallel=False)
        for name, path in found.items():
            # later, each step adds to what the rounding of those before it has become
            first, wanted = path[:, :, :10], expected[:, :, :10]
            off = float(np.abs(first - wanted).max() / np.abs(wanted).max())
            if not off < 1e-5:
                raise SystemExit(f"{name} does not draw the motion by hand: off by {off:.1e}")

    def ways(self) -> Ways:
        """Ours, by hand, and Pyro's."""
        return {
            "ours": self.ours,
            "by hand": self.by_hand,
            "Predictive": partial(self.predictive, parallel=False),
            "Predictive, parallel": partial(self.predictive, parallel=True),
        }

    @property
    def _latent(self) -> int:
        return self.run.model.latent_size

    @property
    def _origin(self) -> np.ndarray:
        return np.tile(np.array(self.scale.center, np.float32), len(BODIES))

    def _start(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """The last state given, the displacements before it, and the walls it is within."""
        s, moves = x[-1], x.diff(dim=0)
        low = self.low.where(s >= self.low, -torch.inf)
        high = self.high.where(s <= self.high, torch.inf)
        return s, list(moves.flip(0)), low, high

    def _step(self, s: Tensor, past: list[Tensor]) -> tuple[tuple, Callable]:
        """Mean and scale of the prior, and those of the policy given a latent."""
        nets = self.plain
        c = torch.cat([s @ nets.view, *(a.expand_as(s) for a in past)], -1)

        def policy(z: Tensor) -> tuple[Tensor, Tensor]:
            known = c.expand(*z.shape[:-1], -1)  # `Predictive` in parallel adds a dimension to z
            mean, raw = nets.policy(torch.cat([z, known], -1)).chunk(2, -1)
            return mean + nets.affine(c), F.softplus(raw) + nets.floor

        return (nets.prior(c), nets.config.latent_scale), policy
