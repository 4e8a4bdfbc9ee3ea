"""A model of one's own: what the library makes of it, and what it refuses in one line."""

import dataclasses
from dataclasses import dataclass, field

import pyro
import pytest
import torch
from helpers import recordings
from pyro import poutine
from pyro.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT
from variants import NET, gradients, recording, scale_of
from variants import build as build_variant

from pyro_animacy import (
    Batch,
    ConfigError,
    ImportanceWeightedELBO,
    ScaledELBO,
    fit,
    predict,
    preset,
    score_animacy,
)
from pyro_animacy.cli import main
from pyro_animacy.infer.score import log_density
from pyro_animacy.models import FAMILIES, Family
from pyro_animacy.models.program import Memory, MessengerGuide
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.models.scene_config import SceneConfig
from pyro_animacy.nets import FixedScaleNormal, PolicyNormal, ResidualNormal, Stack, StackConfig
from pyro_animacy.resting import chosen, components, observed


@dataclass(frozen=True)
class PlainConfig(SceneConfig):
    """One network size for all."""

    net: StackConfig = field(default_factory=lambda: NET)
    independent: bool = True

    @property
    def latent_remembered(self):
        return not self.independent


class Plain(SceneModel):
    """ControlVAE over again, from what the base class says alone."""

    def __init__(self, config, *, scale, bodies, axes=2):
        super().__init__(config, scale=scale, bodies=bodies, axes=axes)
        C, Z, D = self.context_size, self.latent_size, self.state_size
        self.prior = FixedScaleNormal(Stack(C, Z, config.net), 0.3)
        self.pi = PolicyNormal(
            C, Z, D, config.net, scale=None, floor=self.least_scale, mean_init=self.inertia(C)
        )

    def advance(self, name, context, memory, evidence):
        known = context.expand(*memory.latent.shape[:-1], -1)
        evidence = evidence and evidence._replace(context=known)
        z = pyro.sample(name, self.prior(known), infer={"evidence": evidence})
        return Memory(memory.hidden, z)

    def policy(self, context, memory):
        return self.pi(context.expand(*memory.latent.shape[:-1], -1), memory.latent)


class PlainGuide(MessengerGuide):
    def __init__(self, model):
        super().__init__(model)
        network = Stack(model.context_size + model.state_size, 2 * model.latent_size, NET)
        self.residual = ResidualNormal(network, learn_scale=True)

    def posterior(self, prior, evidence):
        return self.residual(prior, evidence.context, evidence.shown, seen=evidence.mask)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setitem(FAMILIES, "plain", Family(PlainConfig, Plain, PlainGuide))
    return "plain"


def both(independent=True):
    """ControlVAE and its like with the same parameters, each with its guide."""
    theirs, their_guide = build_variant("small")
    config = PlainConfig(latent_size=theirs.latent_size, independent=independent)
    ours = Plain(config, scale=scale_of(3), bodies=3).double()
    guide = PlainGuide(ours).double()
    for own, other in ((ours, theirs), (guide, their_guide)):
        for one, two in zip(own.parameters(), other.parameters(), strict=True):
            one.data = two.data.clone()
    return (ours, guide), (theirs, their_guide)


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_independent_steps_of_any_model_are_one_site(K, missing):
    """The loss and gradients of a model of one's own are those of the ControlVAE it repeats."""
    batch = recording(2 + 5, 6, missing=missing)
    found = []
    for model, guide in both():
        torch.manual_seed(0)
        loss = (ScaledELBO() if K == 1 else ImportanceWeightedELBO(K))(model, guide)(batch)
        found.append([loss, *gradients(loss, (model, guide))])
        assert "latent" in guide.trace
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_steps_that_may_depend_on_each_other_are_filtered():
    """A model that does not say otherwise; where they do not depend, the density is the same."""
    batch = recording(2 + 4, 3)
    (_, guide), _ = both(independent=False)
    (_, known), _ = both()
    guide(batch)
    assert {f"latent_{t}" for t in range(4)} <= {*guide.trace}
    for parameter in [*guide.parameters(), *known.parameters()]:
        parameter.data.zero_()  # q = p, whose weights differ least
    torch.manual_seed(0)
    filtered, single = (log_density(g, batch, 20_000)[0] for g in (guide, known))
    torch.testing.assert_close(filtered, single, atol=0.15, rtol=0.0)  # of 10 to 70


def test_it_is_fitted_drawn_from_and_scored(plain, tmp_path, capsys):
    """Without presets, and however its options and networks are called."""
    config = preset("small", plain)
    assert config.importance_samples == 4
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=20))
    data = recordings()
    run = fit(data, config, out=tmp_path / "run", progress=False)
    for mode in ("reconstruct", "forecast", "generate"):
        assert predict(run, data, mode=mode, draws=2, progress=False)
    assert score_animacy(run, data, draws=25, surrogates=2, steps=5, progress=False)
    with pytest.raises(SystemExit):
        main(["fit", "--model", plain, "--help"])
    assert "--model.net.hidden" in capsys.readouterr().out


def test_one_that_remembers_is_trained_on_several_steps(plain):
    assert preset("small", plain).train.window == 1
    with pytest.raises(ConfigError, match=r"train\.window is 1; a model that remembers"):
        dataclasses.replace(preset("small", plain), model=PlainConfig(independent=False))
    rssm = preset("small", "rssm")
    with pytest.raises(ConfigError, match="independent given the"):
        dataclasses.replace(rssm, train=dataclasses.replace(rssm.train, importance_samples=2))


def test_densities_that_cannot_be_scored():
    (model, guide), _ = both()
    batch = recording(2 + 3, 4)
    heavy = StudentT(5.0, torch.zeros(4, 6), torch.ones(4, 6)).to_event(1)
    seen = torch.ones(4, 6) > 0
    for asked in (lambda: observed(heavy, seen), lambda: components(heavy),
                  lambda: chosen(heavy, torch.zeros(4, 6))):  # fmt: skip
        with pytest.raises(ConfigError, match=r"the policy is StudentT; it must be"):
            asked()
    Z = model.latent_size

    def prior(context):
        parts = Normal(context.new_zeros(2, Z), 1.0).to_event(1).expand((*context.shape[:-1], 2))
        return MixtureSameFamily(Categorical(logits=context.new_zeros(2)), parts)

    del model.prior
    model.prior = prior
    guide.posterior = lambda prior, evidence: Independent(Normal(prior.mean, 1.0), 1)
    assert ScaledELBO().loss(model, guide, batch)  # trained it can be
    with pytest.raises(ConfigError, match=r"here are latent ~ MixtureSameFamily.*ScaledELBO"):
        ImportanceWeightedELBO(2).loss(model, guide, batch)
    with pytest.raises(ConfigError, match=r"the prior of the latent is MixtureSameFamily"):
        log_density(guide, batch, 2)


def test_a_guide_is_of_the_model_it_was_made_for():
    (model, guide), (other, _) = both()
    batch = recording(2 + 3, 4)
    for wrong in (other, poutine.scale(model, scale=0.5)):
        with pytest.raises(ConfigError, match="another, or stands under handlers"):
            ScaledELBO().loss(wrong, guide, batch)
    with pytest.raises(ConfigError, match="are of a messenger guide"):
        ImportanceWeightedELBO(2).loss(model, lambda batch: None, batch)


def test_batches_of_something_else():
    (_, guide), _ = both()
    batch = recording(2 + 3, 4)
    narrow = Batch(batch.position[..., :4], batch.observed[..., :4])
    short = Batch(batch.position[:2], batch.observed[:2])
    for wrong, words in (
        (narrow, "5 frames of 4 coordinates; this model looks back on 2.* needs 3, of 6"),
        (short, "2 frames of 6 coordinates"),
        (batch.to("cpu", torch.float32), "is torch.float32 and the model torch.float64"),
    ):
        with pytest.raises(ConfigError, match=words):
            guide(wrong)


def test_runs_are_in_single_precision(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ConfigError, match=r"default type is torch.float64.*set_default_dtype"):
            fit(recordings(), preset("debug"), out=tmp_path / "run", progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not (tmp_path / "run").exists()
