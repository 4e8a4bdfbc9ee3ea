"""Speed of planning with a world model, beside the same search by hand and beside torchrl's.

    .venv/bin/python scripts/planner_speed.py [--rounds 15] [--only NAME]

    ours       `pyro_animacy.acting.planners.plan` with a `WorldModel`, a Pyro program
    by hand    the same search in plain PyTorch on the same weights, rewards step by step
    at once    likewise, the rewards of all steps in one call
    torchrl    torchrl.modules.CEMPlanner on the same weights, where torchrl is installed

Before anything is timed, the searches by hand are checked to find the same plan as ours given the
same noise, in double precision, and torchrl's world to give the same rewards; the command ends with
an error if not. Its search differs in the deviation of the elites alone (n - 1 in place of n). All
take turns in one process, on one thread, in an order drawn anew each round; times are those of the
processor, so that other work on the machine counts as little as may be. Ratios are ours over
theirs, of each round: below 1 is faster. torchrl is no dependency; another folder will do:

    pip install --target FOLDER --no-deps torchrl tensordict pyvers hoptorch cloudpickle orjson
    PYTHONPATH=FOLDER .venv/bin/python scripts/planner_speed.py
"""

import argparse
import copy
import importlib.util
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmarks.timing import compared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.acting.agent import Controls, Planned
from pyro_animacy.acting.config import act_preset
from pyro_animacy.acting.planners import PlannerConfig, identity, plan
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig
from pyro_animacy.nets import StackConfig

WARM_UP = 2  # rounds that are not counted
TARGET = 1.05  # of ours over the faster one by hand


@dataclass(frozen=True)
class Case:
    """What is planned: a model's sizes, a search, and how many beliefs at once."""

    name: str
    model: WorldModelConfig
    planner: PlannerConfig
    actions: int
    environments: int = 1

    @property
    def steps(self) -> int:
        """Steps imagined in one search, of all candidates."""
        o = self.planner
        return o.candidates * o.horizon * o.iterations * self.environments


PLANET = WorldModelConfig(
    memory_size=200, latent_size=30, prior=StackConfig(200, 1), reward=StackConfig(300, 3)
)
SMALL = act_preset("small")
CASES = (
    Case("PlaNet", PLANET, PlannerConfig(), actions=6),
    Case("small", SMALL.model, SMALL.planner, actions=2),
    Case("small, 10 at once", SMALL.model, SMALL.planner, actions=2, environments=10),
)


def of_ours(model: WorldModel, case: Case) -> Planned:
    """What an agent plans with."""
    return Planned(model, case.planner, Controls(case.actions, discrete=False))


def planned(ours: Planned, belief: Memory, case: Case) -> Tensor:
    """Ours: mu (H, E, A)."""
    start = belief.hidden.new_zeros(case.planner.horizon, case.environments, case.actions)
    return plan(ours, belief, identity, start, case.planner).controls


@torch.no_grad()
def by_hand(model: WorldModel, belief: Memory, case: Case, *, at_once: bool = False) -> Tensor:
    """CEM with the recurrent state-space model in plain PyTorch: mu (H, E, A).

    Args:
        model: Whose weights are used.
        belief: h and z, (E, ...).
        case: What is planned.
        at_once: Have the rewards of all steps in one call, rather than step by step.
    """
    o, d, E, A = case.planner, model.dynamics, case.environments, case.actions
    head, reward = _layers(d.prior), _layers(model.reward)
    mu = belief.hidden.new_zeros(o.horizon, E, A)
    sigma = torch.ones_like(mu)
    assert d.embed is not None
    assert d.recurrence is not None
    for _ in range(o.iterations):
        noise = torch.randn(o.horizon, o.candidates, E, A, dtype=mu.dtype)
        u = (mu[:, None] + sigma[:, None] * noise).clamp_(-1, 1)
        h, z = (x.expand(o.candidates, E, -1).flatten(0, 1) for x in belief)
        V, features = torch.zeros(len(h), dtype=mu.dtype), []
        for a in u.flatten(1, 2):
            h = d.recurrence(F.elu(d.embed(torch.cat([z, a], -1)), inplace=True), h)
            mean, raw = _mlp(head, h).chunk(2, -1)
            z = mean + (F.softplus(raw) + d.config.least_scale) * torch.randn_like(mean)
            features.append(torch.cat([h, z], -1))
            if not at_once:
                V = V + _mlp(reward, features.pop())[:, 0]
        if at_once:
            V = _mlp(reward, torch.stack(features))[..., 0].sum(0)
        best = V.unflatten(0, (-1, E)).topk(o.elites, dim=0).indices
        elites = u.gather(1, best[None, ..., None].expand(o.horizon, -1, E, A))
        mu, sigma = elites.mean(1), elites.std(1, correction=0)
    return mu


def _layers(head: Any) -> list[nn.Linear]:
    """The affine maps of a stack, or of the distribution that it parameterises."""
    return list(getattr(head, "network", head).layers)


def _mlp(layers: list[nn.Linear], x: Tensor) -> Tensor:
    for layer in layers[:-1]:
        x = F.elu(layer(x), inplace=True)
    return layers[-1](x)


class _World(nn.Module):
    """One step of the world by hand: h, z, a -> h, z, r of candidates (J, ...)."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model
        self.head, self.reward = _layers(model.dynamics.prior), _layers(model.reward)

    def forward(self, h: Tensor, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d: Any = self.model.dynamics
        h = d.recurrence(F.elu(d.embed(torch.cat([z, a], -1)), inplace=True), h)
        mean, raw = _mlp(self.head, h).chunk(2, -1)
        z = mean + (F.softplus(raw) + d.config.least_scale) * torch.randn_like(mean)
        return h, z, _mlp(self.reward, torch.cat([h, z], -1))


def of_torchrl(model: WorldModel, case: Case) -> tuple[Any, Any]:
    """Their world of our weights, and their planner in it."""
    from tensordict.nn import TensorDictModule
    from torchrl.data import Bounded, Composite, Unbounded
    from torchrl.envs.model_based import (
        ModelBasedEnvBase,
    )
    from torchrl.modules import CEMPlanner

    kind = model.spread.dtype

    class World(ModelBasedEnvBase):
        def __init__(self) -> None:
            keys = ["hidden", "latent"]
            step = TensorDictModule(_World(model), [*keys, "action"], [*keys, "reward"])
            super().__init__(step, device="cpu", batch_size=torch.Size([]))
            sizes = {"hidden": model.memory_size, "latent": model.latent_size}
            self.observation_spec = Composite(
                {name: Unbounded((size,), dtype=kind) for name, size in sizes.items()}
            )
            self.state_spec = self.observation_spec.clone()
            self.action_spec = Bounded(-1.0, 1.0, (case.actions,), dtype=kind)
            self.reward_spec = Unbounded((1,), dtype=kind)

        def _reset(self, tensordict: Any, **_: Any) -> Any:
            raise NotImplementedError("a plan begins at a belief")

    o, world = case.planner, World()
    return world, CEMPlanner(world, o.horizon, o.iterations, o.candidates, o.elites)


def given(belief: Memory) -> Any:
    """A belief (1, ...) as torchrl takes it."""
    from tensordict import TensorDict

    done = dict.fromkeys(("done", "terminated"), torch.zeros(1, dtype=torch.bool))
    return TensorDict({"hidden": belief.hidden[0], "latent": belief.latent[0], **done}, [])


def setting(case: Case) -> tuple[WorldModel, Memory]:
    """A model of the case's sizes, its weights at random, and beliefs (E, ...)."""
    torch.manual_seed(0)
    sight = Sight((8,), (0.0,) * 8, (1.0,) * 8, case.actions, reward=True)
    model = WorldModel(case.model, sight).requires_grad_(False)
    E = case.environments
    return model, Memory(torch.randn(E, model.memory_size), torch.randn(E, model.latent_size))


def verify(model: WorldModel, belief: Memory, case: Case, *, torchrl: bool) -> None:
    """End the program unless all compute the same, in double precision and of the same noise."""
    model, belief = copy.deepcopy(model).double(), Memory(*(x.double() for x in belief))
    ways: dict[str, Callable[..., Tensor]]
    ways = {
        "ours": partial(planned, of_ours(model, case)),
        "by hand": partial(by_hand, model),
        "at once": partial(by_hand, model, at_once=True),
    }
    found = {name: seeded(partial(way, belief, case)) for name, way in ways.items()}
    pairs = [(found["ours"], found[name]) for name in ("by hand", "at once")]
    if torchrl:
        u = torch.rand(case.planner.horizon, case.planner.candidates, case.actions).double() * 2 - 1
        ours = seeded(lambda: model.imagined_rewards(belief, u.unsqueeze(2))[..., 0])
        pairs.append((ours, seeded(lambda: their_rewards(model, belief, case, u))))
    for one, other in pairs:
        if not torch.allclose(one, other, rtol=1e-9, atol=1e-9):
            sys.exit(f"{case.name}: not the same search; apart by {(one - other).abs().max():.1e}")


def seeded(call: Callable[[], Tensor]) -> Tensor:
    """What a call gives with the noise that all are compared with."""
    torch.manual_seed(1)
    return call()


def their_rewards(model: WorldModel, belief: Memory, case: Case, actions: Tensor) -> Tensor:
    """Rewards (H, J) of actions (H, J, A) in torchrl's world."""
    step = iter(actions)

    def act(tensordict: Any) -> Any:
        return tensordict.set("action", next(step))

    world, _ = of_torchrl(model, case)
    start = given(belief).expand(case.planner.candidates).to_tensordict()
    found = world.rollout(len(actions), act, auto_reset=False, tensordict=start)
    return found["next", "reward"][..., 0].T


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each way in each round; a round takes all in an order drawn anew."""
    order, times = list(ways), {name: list[float]() for name in ways}
    shuffle = random.Random(0)
    for index in range(WARM_UP + rounds):
        shuffle.shuffle(order)
        for name in order:
            began = time.process_time()
            ways[name]()
            if index >= WARM_UP:
                times[name].append(time.process_time() - began)
    return times


def measured(case: Case, rounds: int, *, torchrl: bool) -> list[str]:
    """The rows of a case in Markdown."""
    model, belief = setting(case)
    torchrl = torchrl and case.environments == 1
    verify(model, belief, case, torchrl=torchrl)
    ours_way = of_ours(model, case)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: planned(ours_way, belief, case),
        "by hand": lambda: by_hand(model, belief, case),
        "by hand, at once": lambda: by_hand(model, belief, case, at_once=True),
    }
    if torchrl:
        _, planner = of_torchrl(model, case)
        start = given(belief)
        ways[f"torchrl {importlib.import_module('torchrl').__version__}"] = torch.no_grad()(
            lambda: planner(start.clone())
        )
    times = interleaved(ways, rounds)
    ours, rows = times.pop("ours"), []
    for name, theirs in times.items():
        low, median, high, fastest, seconds = compared(ours, theirs)
        rows.append(
            f"| {case.name} | {name} | **{median:.3f}** | {low:.3f} to {high:.3f} | {fastest:.3f} "
            f"| {seconds * 1e3:.1f} | {statistics.median(ours) * 1e3:.1f} "
            f"| {case.steps / statistics.median(ours):.3g} |"
        )
    return rows


def main() -> None:
    """Verify, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torchrl = importlib.util.find_spec("torchrl") is not None
    warnings.filterwarnings("ignore", module="torchrl|tensordict")
    print("| | ours beside | ratio | quartiles | of the fastest | theirs, ms | ours, ms "
          "| ours, candidates x steps/s |\n" + "|---" * 8 + "|")  # fmt: skip
    with no_validation():  # as `act` runs
        for case in CASES:
            if options.only in case.name:
                print(*measured(case, options.rounds, torchrl=torchrl), sep="\n", flush=True)
    print(f"\ntorch {torch.__version__}, one thread, processor time, the aim {TARGET} by hand.")
    if not torchrl:
        print("torchrl is left out: it is not installed.")


if __name__ == "__main__":
    main()
