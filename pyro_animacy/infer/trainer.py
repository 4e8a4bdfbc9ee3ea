"""The training loop: one visible loop on the scaled ELBO, or on the importance-weighted bound.

Every random number of step n is drawn from a stream seeded by (seed, n). So the state of a run is
its parameters, their average, its optimiser and n: a run resumed after a signal or a kill is, on
CPU, bit for bit the run that was never interrupted.

What is validated, saved and scored is the moving average of the parameters over updates,

    m_{n+1} = d_n m_n + (1 - d_n) theta_{n+1},      d_n = min(ema_decay, (1 + n) / (10 + n)),

which has a fraction of the noise that batches leave in theta (Polyak & Juditsky, Acceleration of
stochastic approximation by averaging, SIAM Journal on Control and Optimization 30(4), 1992).

Under `torchrun` every process runs this loop on its share of the batch: see `infer.distributed`.
"""

import copy
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint as recomputed

from pyro_animacy.errors import ConfigError, DataError, RunError, command_line
from pyro_animacy.images import ImageDecoder, ImageEncoder
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.config import FitConfig
from pyro_animacy.infer.distributed import ALONE, LostProcess, Processes
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.infer.episodes import EpisodeSource
from pyro_animacy.infer.iwae import ImportanceWeightedELBO
from pyro_animacy.infer.loop import (
    SAVE_EVERY,
    Interrupted,
    clip,
    diverged,
    fitting,
    groups,
    make_elbo,
    make_optimizer,
    signals,
    stream,
    summary_writer,
    tensorboard,
    worth_tracing,
)
from pyro_animacy.infer.run import METRICS, build, pick_device, read_metrics
from pyro_animacy.infer.schedules import learning_rate
from pyro_animacy.infer.source import Draw, SceneSource, Source
from pyro_animacy.infer.traced import Gradient, no_validation
from pyro_animacy.keypoints import KeypointDecoder, KeypointEncoder
from pyro_animacy.models import family
from pyro_animacy.nets import Stack
from pyro_animacy.progress import tqdm
from pyro_animacy.sets import SetMessages

LOG_EVERY = 10  # updates
FEEDFORWARD = (Stack, ImageEncoder, ImageDecoder)
# Those of keypoints and messages are of places, which eight bits are too few for.
NETWORKS = (*FEEDFORWARD, SetMessages, KeypointEncoder, KeypointDecoder, nn.GRU)


class Trainer:
    """The training loop and its state: parameters, their average, optimiser, step, best score.

    Args:
        dataset: The recordings.
        config: The options.
        path: The run's folder.
        progress: Show a progress bar.
        processes: Those that fit together; by default this one is alone.
        heldout: As for `fit`.

    Raises:
        ConfigError: If the batch has fewer windows than there are processes.
        DataError: If the recordings have not been read, or do not suit the model.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        config: FitConfig,
        path: Path,
        *,
        progress: bool,
        processes: Processes = ALONE,
        heldout: xr.Dataset | None = None,
    ) -> None:
        options = self.options = config.train
        self.path, self.processes = path, processes
        self.progress = progress and processes.first
        if not isinstance(dataset, xr.Dataset):
            raise DataError(
                f"the recordings are a {type(dataset).__name__}; they must be an xarray Dataset: "
                "read them first, by read_trajectories(recordings, fps=...) or, of episodes, by "
                "make_episodes"
            )
        if options.tensorboard:
            summary_writer()  # fail now, before anything is written
        self.source: Source
        if family(config.family).data == "episodes":
            if heldout is not None:
                raise ConfigError(f"{config.family} holds episodes out itself; leave heldout out")
            self.source = EpisodeSource(dataset, config)
        else:
            self.source = SceneSource(dataset, config, heldout)
        if self.source.batch_size < processes.size:
            raise ConfigError(
                f"train.batch_size is {self.source.batch_size}, the batch of all {processes.size} "
                "processes together; it must be at least one window for each"
            )
        self.importance_samples = config.importance_samples
        self.device = pick_device(processes.device(options.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(options.seed, -1))
            self.model, self.guide = build(self.source.card)
        if options.checkpoint_activations:
            checkpoint_activations(self.model)
            checkpoint_activations(self.guide)
        if options.precision == "bf16-mixed":
            mixed_precision(self.model)
            mixed_precision(self.guide)
        self.modules = nn.ModuleDict({"model": self.model, "guide": self.guide}).to(self.device)
        self.average = copy.deepcopy(self.modules)
        # once: to go through the modules at every update takes as long as to add up
        self.m, self.theta = ([*of.parameters()] for of in (self.average, self.modules))
        self.optimizer = make_optimizer(groups(self.modules, options), options)
        # of the scheduled rate: 1, but of a transition with one of its own
        self.shares = [group["lr"] / options.learning_rate for group in self.optimizer.param_groups]
        self.step, self.best, self.stale, self.seconds = 0, -np.inf, 0, 0.0
        self.rows: list[dict[str, float]] = []

    def train(self) -> None:
        """Run the loop from the present step to the end, or to the last of the patience.

        Raises:
            RunError: If the loss or its gradient is not finite; the last checkpoint is kept.
            Interrupted: After a signal to any of the processes, when all is saved.
            LostProcess: If another process is gone; what the last update left is saved.
        """
        o = self.options
        K = self.importance_samples
        elbo = ImportanceWeightedELBO(K) if K > 1 else make_elbo(o)
        traced = worth_tracing(o, o.steps)
        gradient = Gradient(elbo, self.model, self.guide, traced=traced)
        gpu = [self.device] if self.device.type == "cuda" else []  # its own, not all there are
        batches = self.source.batches(map(self._drawn, range(self.step, o.steps)))
        saved, began = time.monotonic(), time.monotonic() - self.seconds
        bar = tqdm(total=o.steps, initial=self.step, desc="fit", unit="step",
                   disable=not self.progress, mininterval=0.5)  # fmt: skip
        with (
            tensorboard(self.path, o.tensorboard and self.processes.first) as board,
            signals() as caught,
            torch.random.fork_rng(gpu),
            no_validation(),
            self._saved_if_lost(),
            bar,
        ):
            while self.step < o.steps and not self._patience_spent():
                elbo.kl_weight = o.kl_weight(self.step // o.steps_per_epoch)
                rate = learning_rate(self.step, o.steps, o.learning_rate, o.schedule)
                loss = self._update(gradient, rate, *next(batches))
                self.step += 1
                self.seconds = time.monotonic() - began
                bar.update()

                evaluate = self.step % o.evaluate_every == 0 or self.step == o.steps
                if evaluate or self.step % LOG_EVERY == 0:
                    self.rows.append(self._row(loss, elbo, rate))
                if evaluate and self.processes.first:
                    self.rows[-1] |= self._evaluate()
                    bar.set_postfix(loss=f"{loss.item():.3f}", validation=f"{self.last:.3f}")
                if evaluate:
                    self.stale = self.processes.from_first(self.stale)
                if board and self.rows and self.rows[-1]["step"] == self.step:
                    for name, value in self.rows[-1].items():
                        board.add_scalar(name, value, self.step)
                stopped = self.processes.total(len(caught))  # all stop after the same step
                if evaluate or stopped or time.monotonic() - saved >= SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
                if stopped:
                    raise Interrupted(
                        f"stopped at step {self.step} of {o.steps}; all is saved. Go on with: "
                        f"{command_line('fit', '--resume', self.path)}",
                        caught[0] if caught else signal.SIGTERM,
                    )

    def _drawn(self, step: int) -> Draw:
        """The windows of this process at a step, and the generator of their noise.

        All processes draw the same windows; each takes its share, under noise of its own.
        """
        o, processes, source = self.options, self.processes, self.source
        generator = torch.Generator().manual_seed(stream(o.seed, step))
        which = torch.randint(len(source.windows), (source.batch_size,), generator=generator)
        if not processes.first:
            generator.manual_seed(stream(o.seed, step, processes.rank))
        return processes.share(which), generator

    def _update(self, gradient: Gradient, rate: float, batch: Any, steps: int) -> torch.Tensor:
        """Take a step on its batch, in which so many steps were observed; returns its loss."""
        o, processes, elbo = self.options, self.processes, gradient.elbo
        torch.manual_seed(stream(o.seed, self.step, processes.rank) + 1)
        elbo.scale = 1 / max(processes.total(steps), 1)  # a loss in nats per observed step
        batch = batch.to(self.device)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = rate * share
        loss = gradient(batch)
        processes.add_up(self.modules, [loss, *elbo.terms.values()])
        if wrong := clip(self.optimizer, loss, o):
            raise self._diverged(wrong)
        self.optimizer.step()
        self._take_average()
        return loss

    def _take_average(self) -> None:
        """m_{n+1} of the parameters after the update, as the top of this file has it."""
        n = self.step
        decay = min(self.options.ema_decay, (1 + n) / (10 + n))
        get_ema_multi_avg_fn(decay)(self.m, self.theta, n)

    def _diverged(self, what: str) -> RunError:
        saved = (self.path / checkpoint.TRAINER).is_file()
        kept = f"the last good checkpoint is kept in {self.path}" if saved else "nothing was saved"
        return diverged(f"step {self.step}", what, kept)

    def _patience_spent(self) -> bool:
        return self.options.patience is not None and self.stale >= self.options.patience

    def _row(self, loss: torch.Tensor, elbo: ScaledELBO, rate: float) -> dict[str, float]:
        """One line of the log: the terms of this step's loss, in nats per step."""
        terms = elbo.logged()
        return {
            "step": self.step,
            "seconds": round(self.seconds, 2),
            "loss": loss.item(),
            "reconstruction": terms.pop("reconstruction"),
            "kl": terms.pop("kl"),
            "action_cost": terms.pop("action_cost", 0.0),
            **terms,  # what the model has besides: rewards, what was expected further ahead
            "kl_weight": elbo.kl_weight,
            "learning_rate": rate,
        }

    def _evaluate(self) -> dict[str, float]:
        """Score the validation part; keep the parameters where it is the best so far."""
        torch.manual_seed(stream(self.options.seed, -2))
        guide: Any = self.average["guide"]
        self.last = self.source.validate(guide)
        if not math.isfinite(self.last):
            raise self._diverged(f"the validation score is {self.last}")
        checkpoint.keep(self.path, self.step, self.options.keep, self._save_weights)
        if self.last > self.best or self.best == -np.inf or self.options.patience is None:
            self.best, self.stale = self.last, 0
            self._save_weights(self.path)
        else:
            self.stale += 1
        return {"validation_nats_per_step": self.last}

    def _save_weights(self, folder: Path) -> None:
        path = folder / checkpoint.WEIGHTS
        checkpoint.save_weights(path, self.average.state_dict(), self.source.card)

    @contextmanager
    def _saved_if_lost(self) -> Iterator[None]:
        """Save when another process is gone: between two updates nothing is half done."""
        try:
            yield
        except LostProcess as lost:
            self.save()
            raise LostProcess(
                f"step {self.step} of {self.options.steps}: {lost}. Go on with: "
                f"{command_line('fit', '--resume', self.path)}"
            ) from lost

    def save(self) -> None:
        """Write everything needed to go on from here; the first process does it for all."""
        if not self.processes.first:
            return
        state = {
            "format": checkpoint.FORMAT,
            "parameters": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "seconds": self.seconds,
            "recordings": self.source.fingerprint(),
        }
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        checkpoint.write_atomically(self.path / METRICS, lambda to: to.write_text(text))
        checkpoint.save_trainer(self.path / checkpoint.TRAINER, state)

    def load(self, state: dict[str, Any]) -> None:
        """Take up the state that `save` wrote.

        Raises:
            RunError: If it is of other recordings or of another model.
        """
        if state["recordings"] != self.source.fingerprint():
            raise RunError(
                f"{self.path}: the recordings are not those of this run; resume with the same data "
                "and the same data options"
            )
        with fitting(f"{self.path}: the saved state"):
            self.modules.load_state_dict(state["parameters"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        self.seconds = state["seconds"]
        rows = read_metrics(self.path, "step")
        self.rows = [row for row in rows if row["step"] <= self.step]


def checkpoint_activations(model: nn.Module) -> None:
    """Have a model's networks keep their inputs only, for the same gradient from less memory.

    Hidden activations, most of what a loop over time keeps, are computed again in the backward
    pass. What was drawn is not drawn again: networks draw nothing. The cell of a state-space model,
    whose gates are a small part, keeps what it did.
    """
    _call_by(partial(recomputed, use_reentrant=False, preserve_rng_state=False), model, NETWORKS)


def mixed_precision(model: nn.Module) -> None:
    """Have a model's feedforward networks multiply in bfloat16, where a gradient is asked for.

    Around networks, not programs: in eight bits bodies that are close would be in one place, a
    small KL would be none, and a weight's gradient would lose what each step of time adds to it
    (so that weights are cast at every call, each cast's gradient added in float32).
    """
    _call_by(_in_bfloat16, model, FEEDFORWARD)


def _call_by(way: Callable[..., Any], model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Let ``way(forward, ...)`` call the forward of every network of these kinds in a model."""
    for part in model.children():
        if isinstance(part, kinds):
            part.forward = partial(way, part.forward)
        else:
            _call_by(way, part, kinds)


def _in_bfloat16(forward: Callable[..., Tensor], x: Tensor, *more: Any, **named: Any) -> Tensor:
    training = torch.is_grad_enabled()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=training, cache_enabled=False):
        return forward(x, *more, **named).to(x.dtype)
