"""Runs of models of episodes: fit, resume, load, sample and criticise, and what cannot be used."""

import dataclasses
import re
import shutil
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from helpers import assert_same_run, chase, table

from pyro_animacy import Run, ScaledELBO, fit, preset, resume
from pyro_animacy.acting.direct import direct
from pyro_animacy.cli import main
from pyro_animacy.criticism.animacy import interaction, score_animacy
from pyro_animacy.criticism.contenders import compare_runs
from pyro_animacy.criticism.criticise import criticise
from pyro_animacy.criticism.criticise_episodes import criticise_episodes
from pyro_animacy.criticism.elpd import elpd
from pyro_animacy.criticism.episodes import (
    OpenLoop,
    active,
    latent_use,
    log_density,
    paired,
    principal_components,
    projected,
    windows,
)
from pyro_animacy.criticism.episodes_sections import _ahead
from pyro_animacy.criticism.forecasts import forecast_all
from pyro_animacy.criticism.importance import guide_quality
from pyro_animacy.criticism.latent import latent_use as use_of_latent
from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.data.episodes import make_episodes, read_episodes, save_episodes
from pyro_animacy.errors import ConfigError, DataError, RunError
from pyro_animacy.infer import trainer as loop
from pyro_animacy.infer.config import parse_config
from pyro_animacy.infer.draws import save_draws
from pyro_animacy.infer.episodes import elbo_per_frame, see
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.run import split_episodes

MODELS = ("image_vae", "world_model")


def agent(episodes=8, frames=14, seed=0):
    """A point pushed about: vectors, actions, rewards; half end by themselves; one is shorter."""
    rng = np.random.default_rng(seed)
    x, a = np.zeros((episodes, frames, 3)), rng.normal(size=(episodes, frames, 1))
    for t in range(1, frames):
        noise = 0.1 * rng.normal(size=(episodes, 3))
        x[:, t] = 0.9 * x[:, t - 1] + a[:, t - 1] * [1, 0.5, 0] + noise
    reward = x[..., 0].copy()
    reward[:, 0] = 0
    length = np.full(episodes, frames)
    length[1] = frames - 4
    terminal = np.zeros((episodes, frames), bool)
    terminal[np.arange(0, episodes, 2), length[::2] - 1] = True
    return make_episodes(
        observation=x, action=a, reward=reward, terminal=terminal, length=length, fps=10,
        source="agent",
    )  # fmt: skip


def test_the_spread_of_rewards_is_of_those_met():
    """Neither the padding nor the 0 before the first action counts; alike, it is 1."""
    data = agent()
    met = [
        float(data["reward"][n, t])
        for n in range(8) for t in range(1, int(data["length"][n]))
    ]  # fmt: skip
    assert see(data).reward_spread == pytest.approx(np.std(met), rel=1e-6)
    assert see(data.assign(reward=0 * data["reward"] + 2)).reward_spread == 1.0
    assert see(data.drop_vars("reward")).reward_spread == 1.0


def test_a_feature_that_never_changes_has_no_spread():
    """Of 0.1 in float32 the mean of many is not 0.1: what is left is rounding, and its unit 1."""
    data = agent()
    x = data["observation"].to_numpy().astype(np.float32)
    x[..., 1] = 0.1
    data = data.assign(
        observation=(data["observation"].dims, x), action=0 * data["action"] - 0.7
    )  # fmt: skip
    sight = see(data)
    assert sight.spread[1] == 1.0
    assert sight.mean[1] == pytest.approx(0.1, abs=1e-7)
    assert set(sight.action_spread) == {1.0}
    met = np.concatenate([x[n, : int(data["length"][n])] for n in range(8)])
    assert sight.spread[0] == pytest.approx(met[:, 0].astype(float).std(), rel=1e-6)


def film(episodes=6, frames=8, seed=0):
    """Images 46 x 50 of a bright square that wanders over a dark field."""
    rng = np.random.default_rng(seed)
    image = np.full((episodes, frames, 46, 50, 3), 30, np.uint8)
    at = rng.integers(5, 30, (episodes, 2))
    for t in range(frames):
        at = np.clip(at + rng.integers(-3, 4, at.shape), 0, 36)
        for n, (row, column) in enumerate(at):
            image[n, t, row : row + 8, column : column + 8] = (220, 60 + 10 * n, 90)
    return make_episodes(image=image, fps=5, source="film")


def test_colours_are_those_seen():
    """Mean and standard deviation of each channel, padding left out."""
    data = film()
    data["length"][0] = 3
    seen = [data["image"][n, : int(data["length"][n])].values.reshape(-1, 3) for n in range(6)]
    pixels = np.concatenate(seen) / 255 - 0.5
    np.testing.assert_allclose(see(data).mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(see(data).spread, pixels.std(0), rtol=1e-9)
    assert see(data.assign(image=0 * data["image"] + 7)).spread == (1.0,) * 3
    # a channel that is all but constant is seen no larger than by its steps
    image = np.full((3, 4, 46, 46, 3), 7, np.uint8)
    image[0, 0, 0, 0, 1] = 8
    assert see(make_episodes(image=image)).spread == pytest.approx((1.0, 1 / 255, 1.0))


def test_features_are_those_seen():
    """Mean and standard deviation of each feature; one that never changes has the spread 1."""
    data = agent()
    data["observation"][:, :, 1] = 3.0
    data["length"][0] = 3
    seen = np.concatenate(
        [data["observation"][n, : int(data["length"][n])].values for n in range(8)]
    ).astype(float)
    np.testing.assert_allclose(see(data).mean, seen.mean(0), rtol=1e-5, atol=1e-6)
    spread = seen.std(0)
    np.testing.assert_allclose(see(data).spread, [spread[0], 1.0, *spread[2:]], rtol=1e-5)


DATA = {"image_vae": film, "world_model": agent}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of episodes for each model."""
    folder = tmp_path_factory.mktemp("episodes")
    for name, make in DATA.items():
        save_episodes(make(), folder / f"{name}.nc")
    return {name: folder / f"{name}.nc" for name in DATA}


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A run of each model, by the command line. Read it; copy it to change it."""
    folder = tmp_path_factory.mktemp("runs")
    for name, file in files.items():
        command = ["fit", str(file), "--model", name, "--preset", "debug"]
        assert main([*command, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in files}


# --- fit, resume, load ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_command_is_the_function(name, files, runs, tmp_path):
    """`fit FILE --model NAME` makes the run that `fit` makes, and says where the episodes are."""
    run = fit(
        read_episodes(files[name]), preset("debug", name), out=tmp_path / "run", progress=False
    )
    assert_same_run(run.path, runs[name])
    settings = yaml.safe_load((runs[name] / "config.yaml").read_text())
    assert settings["data"] == {"source": str(files[name])}
    assert settings["family"] == name


@pytest.mark.parametrize("name", MODELS)
def test_a_stopped_run_goes_on_to_the_same_bits(name, files, runs, tmp_path, monkeypatch):
    update = loop.Trainer._update

    def stop(self, *arguments):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_update", stop)
        command = ["fit", str(files[name]), "--model", name, "--preset", "debug"]
        assert main([*command, "--out", str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(["fit", "--resume", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", runs[name])


@pytest.mark.parametrize("name", MODELS)
def test_other_episodes_are_not_resumed(name, runs):
    with pytest.raises(RunError, match="not those of this run"):
        resume(runs[name], DATA[name](seed=1), progress=False)


def test_held_out_bound_is_that_of_the_held_out_part(runs, files):
    """The figure of summary.json: of the run's loaded parameters, on episodes never trained on."""
    for name in MODELS:
        run = Run.load(runs[name])
        dataset = read_episodes(files[name])
        held = run.heldout(dataset)
        fitted = set(run.fitted(dataset)["trajectory"].to_numpy())
        assert not fitted & set(held["trajectory"].to_numpy())
        frames = run.settings["train"]["window"]
        found = elbo_per_frame(run.guide, EpisodeWindows(held, frames), most=2048)
        assert found[0] == run.summary["heldout_elbo_per_frame"]
        assert elbo_per_frame(run.guide, EpisodeWindows(dataset, frames))[1] > 0


# --- sample --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "more", "group", "frames"),
    [
        ("image_vae", "reconstruct", [], "posterior_predictive", 8),
        ("image_vae", "generate", [], "posterior_predictive", 8),
        ("world_model", "reconstruct", [], "posterior_predictive", 14),
        ("world_model", "generate", ["--horizon", "6"], "posterior_predictive", 6),
        ("world_model", "forecast", ["--context", "4", "--horizon", "3"], "predictions", 7),
    ],
)
def test_sample(name, mode, more, group, frames, runs, files, tmp_path):
    out = tmp_path / "draws.nc"
    command = ["sample", str(runs[name]), str(files[name]), "--mode", mode, "--draws", "3"]
    assert main([*command, *more, "--out", str(out)]) == 0
    tree = xr.open_datatree(out, engine="h5netcdf").load()
    shown = "image" if name == "image_vae" else "observation"
    drawn, observed = tree[group][shown], tree["observed_data"][shown]
    assert drawn.dims[:4] == ("chain", "draw", "trajectory", "time")
    assert drawn.dims[2:] == observed.dims
    assert drawn.sizes["draw"] == 3
    assert drawn.sizes["time"] == frames
    assert drawn.dtype == (np.uint8 if shown == "image" else np.float32)
    held = Run.load(runs[name]).heldout(read_episodes(files[name]))
    kept = held.sel(trajectory=tree["observed_data"]["trajectory"].to_numpy())
    inside = np.arange(frames) < kept["length"].to_numpy()[:, None]
    recorded = kept[shown].to_numpy()[:, :frames]
    np.testing.assert_array_equal(observed.to_numpy()[inside], recorded[inside])
    np.testing.assert_allclose(drawn["time"], np.arange(frames) / held.attrs["fps"])
    assert ("posterior" in tree) == (mode == "reconstruct")
    if mode == "reconstruct":
        assert tree["posterior"]["latent"].shape == (1, 3, *observed.shape[:2], 4)
    if mode == "forecast":
        given = drawn.to_numpy()[0, :, :, :4]
        np.testing.assert_array_equal(given, np.broadcast_to(recorded[:, :4], given.shape))
    if shown == "observation":
        assert tree[group]["reward"].dims == ("chain", "draw", "trajectory", "time")
        outside = np.isnan(drawn.to_numpy()).any(-1)
        assert (outside == ~inside).all()
    assert tree.attrs["mode"] == mode


def test_draws_are_repeatable_and_of_the_seed(runs):
    run = Run.load(runs["world_model"])
    made = [
        predict_episodes(run, agent(), mode="generate", draws=2, seed=seed, progress=False)
        for seed in (0, 0, 1)
    ]
    first, again, other = (tree["posterior_predictive"]["observation"] for tree in made)
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first, other, equal_nan=True)


def test_forecasts_follow_the_prior_under_the_recorded_actions(runs):
    """Open loop: frames after the context change nothing; an action changes what comes after it."""
    run, data = Run.load(runs["world_model"]), agent()

    def forecast(dataset):
        tree = predict_episodes(run, dataset, mode="forecast", context=4, draws=2, progress=False)
        return tree["predictions"]["observation"].to_numpy()

    base = forecast(data)
    later, acted = data.copy(deep=True), data.copy(deep=True)
    later["observation"][:, 4:] += 3.0
    np.testing.assert_array_equal(forecast(later), base)
    acted["action"][:, 6] += 2.0  # taken after frame 6: seen first in frame 7
    changed = np.nan_to_num(forecast(acted) - base)
    assert not changed[:, :, :, :7].any()
    assert changed[:, :, :, 7].all()


def test_an_image_vae_generates_with_the_decoder_alone(runs, monkeypatch):
    run = Run.load(runs["image_vae"])

    def barred(*_):
        raise AssertionError("the encoder was used")

    monkeypatch.setattr(run.guide.encoder, "forward", barred)
    data = film()
    tree = predict_episodes(run, data, mode="generate", draws=1, progress=False)
    assert tree["posterior_predictive"]["image"].shape == (1, 1, *data["image"].shape)
    with pytest.raises(AssertionError, match="encoder"):
        predict_episodes(run, data, mode="reconstruct", draws=1, progress=False)


def test_reconstruction_decodes_the_latents_it_returns(runs, tmp_path):
    run = Run.load(runs["image_vae"])
    tree = predict_episodes(run, film(), mode="reconstruct", draws=2, progress=False)
    z = torch.from_numpy(tree["posterior"]["latent"].to_numpy())
    with torch.no_grad():
        mean = run.model.decoder(z).movedim(-3, -1).numpy()
    image = tree["posterior_predictive"]["image"].to_numpy()
    assert abs(image - 255 * mean).max() < 0.5001
    save_draws(tree, tmp_path / "draws.nc")
    stored = xr.open_datatree(tmp_path / "draws.nc", engine="h5netcdf")
    np.testing.assert_array_equal(stored["posterior_predictive"]["image"], image)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("image_vae", {"mode": "forecast"}, ConfigError, "no time"),
        ("world_model", {"mode": "forecast", "context": 14}, DataError, "longer than the 14"),
        ("world_model", {"mode": "forecast", "horizon": 50}, ConfigError, "longest episode has 14"),
        ("world_model", {"mode": "other"}, ConfigError, "reconstruct, forecast or generate"),
        ("world_model", {"draws": 0}, ConfigError, "draws is 0"),
        ("world_model", {"draws": 10**12}, ConfigError, "GiB"),
    ],
)
def test_what_cannot_be_drawn(name, options, error, words, runs):
    with pytest.raises(error, match=words):
        predict_episodes(Run.load(runs[name]), DATA[name](), progress=False, **options)


def test_episodes_of_another_kind_are_refused(runs):
    run = Run.load(runs["world_model"])
    data = agent()
    for other, words in (
        (film(), "shape"),
        (data.drop_vars("reward"), "no `reward`"),
        (data.drop_vars("action"), "controls: 0"),
        (data.assign_attrs(fps=20.0), "20 frames a second"),
    ):
        with pytest.raises(DataError, match=words):
            predict_episodes(run, other, progress=False)
    with pytest.raises(ConfigError, match="predict_episodes"):
        predict(run, data)


# --- criticise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("image_vae", ["bound", "pictures", "latent", "training"]),
        ("world_model", ["bound", "forecast", "latent", "training"]),
    ],
)
def test_criticise(name, sections, runs, tmp_path):
    out = tmp_path / "report.html"
    command = ["criticise", str(runs[name]), "--frames", "8", "--windows", "4", "--out", str(out)]
    assert main(command) == 0
    page = out.read_text()
    assert re.findall(r'<section id="(\w+)">', page) == ["short", *sections, "settings"]
    assert "moving bodies" not in page
    assert ("picture" in page) == (name == "image_vae")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "nan" not in text.lower().split()
    for words in {"image_vae": ["PCA", "mean frame", "dimensions are active"],
                  "world_model": ["last frame held", "actions", "Rewards"]}[name]:  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([2, 18, 1], "not clearly better or worse than"),  # nearly twice, but is it?
        ([1, 1, 2], "better than"),
        ([8, 9, 8], "worse than"),
    ],
)
def test_forecasts_are_compared_in_words_that_fit_the_numbers(ours, said):
    errors = {"open loop": np.array(ours)[:, None], "last frame stays": np.full((3, 1), 4.0)}
    empty = np.empty(0)
    loop = OpenLoop(errors, {}, np.arange(3), 4, 10.0, empty, empty, empty)
    sentence = _ahead(loop, "the last frame held").sentence
    assert sentence.startswith(f"In open loop it is {said} the last frame held: squared error ")


@pytest.mark.parametrize("options", [
    {"latent_size": 0}, {"memory_size": 0}, {"latent_size": 2, "classes": 3},
])  # fmt: skip
def test_every_kind_of_dynamics_is_criticised(options, files, tmp_path):
    words = [f"--model.{name}={value}" for name, value in options.items()]
    command = ["fit", str(files["world_model"]), "--model", "world_model", "--preset", "debug"]
    assert main([*command, *words, "--out", str(tmp_path / "run")]) == 0
    assert main(["criticise", str(tmp_path / "run"), str(files["world_model"]),
                 "--out", str(tmp_path / "r.html")]) == 0  # fmt: skip
    page = (tmp_path / "r.html").read_text()
    assert ('id="latent"' in page) == (options.get("latent_size") != 0)


@pytest.mark.parametrize("option", ["symmetry=rotate", "symmetry=none", "score_draws=64"])
@pytest.mark.parametrize("name", MODELS)
def test_options_of_scenes_are_refused(name, option, files, refused, tmp_path):
    command = ["fit", files[name], "--model", name, "--preset", "debug", "--out", tmp_path / "r"]
    said = refused(*command, f"--train.{option}")
    assert f"train.{option.partition('=')[0]} is" in said
    assert f"{name} is one of episodes: leave it out" in said


def test_the_papers_image_vae_is_not_clipped():
    """A step without a clip: gradients stay, bit for bit, and the option outlives a file."""
    config = preset("paper", "image_vae")
    settings = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config)))
    assert parse_config(settings) == config
    parameter = torch.nn.Parameter(torch.tensor([3e4, 4e4]))
    parameter.grad = parameter.detach().clone()
    torch.nn.utils.clip_grad_norm_([parameter], config.train.clip_norm)
    assert torch.equal(parameter.grad, parameter)


def test_a_window_that_the_config_lacks_is_the_default(runs, tmp_path):
    copied = shutil.copytree(runs["image_vae"], tmp_path / "run")
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    del settings["train"]["window"]
    (copied / "config.yaml").write_text(yaml.safe_dump(settings))
    save_episodes(film(seed=3), tmp_path / "more.nc")
    words = ["criticise", str(copied), str(tmp_path / "more.nc"), "--frames", "8"]
    assert main([*words, "--windows", "2", "--out", str(tmp_path / "r.html")]) == 0


def test_principal_components_are_those_of_the_covariance():
    """Projection and evidence beside the eigenvectors of the D x D covariance, written out."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 9)) @ rng.normal(size=(9, 9))).astype(np.float32)
    of = principal_components(x, 3)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(float), bias=True))
    U, variance, rest = vectors[:, -3:], values[-3:], values[:-3].mean()
    mean = x.mean(0)
    np.testing.assert_allclose(projected(of, x), mean + (x - mean) @ U @ U.T, atol=1e-4)
    covariance = (U * (variance - rest)) @ U.T + rest * np.eye(9)
    density = torch.distributions.MultivariateNormal(
        torch.from_numpy(mean.astype(float)), torch.from_numpy(covariance)
    )
    expected = density.log_prob(torch.from_numpy(x.astype(float)))
    np.testing.assert_allclose(log_density(of, x), expected, rtol=1e-4)


def test_paired_differences_count_episodes_not_frames():
    """Frames of an episode that err alike add nothing: two episodes are a sample of two."""
    episode = np.repeat([0, 1], 100)
    ours = np.where(episode == 0, 1.0, 3.0)
    found = paired(ours, np.zeros(200), episode)
    assert found == (2.0, pytest.approx(1.0))  # standard deviation sqrt 2, over sqrt 2
    assert np.isnan(paired(ours[:100], np.zeros(100), episode[:100]).error)


def test_windows_are_the_frames_they_name():
    data = agent()
    cut, episode = windows(data, 5, 50)
    assert cut.sizes["trajectory"] == 2 * 8  # of 14 and of 10 frames, two each
    for n, name in enumerate(cut["trajectory"].to_numpy()):
        which, _, frame = name.partition(", frame ")
        part = data.sel(trajectory=which).isel(time=slice(int(frame), int(frame) + 5))
        assert data["trajectory"].to_numpy()[episode[n]] == which
        for variable in ("observation", "action"):
            np.testing.assert_array_equal(cut[variable][n], part[variable])
        np.testing.assert_array_equal(cut["reward"][n, 1:], part["reward"][1:])
    with pytest.raises(DataError, match="--frames"):
        windows(data, 15, 50)


# --- what cannot be used -------------------------------------------------------------------------


def test_each_kind_of_file_names_the_models_for_it(files, refused, tmp_path):
    said = refused("fit", files["world_model"], "--out", tmp_path / "r")
    assert "episodes" in said
    assert "--model image_vae or --model world_model" in said
    table(chase()).to_csv(tmp_path / "chase.csv", index=False)
    said = refused("fit", tmp_path / "chase.csv", "--model", "world_model", "--out", tmp_path / "r")
    assert "--model control_vae" in said
    scene = xr.Dataset(
        {"position": (("trajectory", "time", "body", "space"), np.zeros((1, 9, 2, 2)))}
    )
    scene.to_netcdf(tmp_path / "scene.nc", engine="h5netcdf")
    said = refused("fit", tmp_path / "scene.nc", "--model", "image_vae", "--out", tmp_path / "r")
    assert "--model control_vae" in said
    said = refused("fit", tmp_path / "none.nc", "--model", "image_vae", "--out", tmp_path / "r")
    assert "no such file" in said
    said = refused("fit", files["world_model"], "--model", "image_vae", "--out", tmp_path / "r")
    assert "images" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("option", ["bodies", "labels", "downsample", "units", "resolution"])
def test_options_of_scenes_are_refused_by_name(option, files, refused, runs, tmp_path):
    value = {"downsample": 2, "resolution": 0.1}.get(option, "a")
    for command in (
        ["fit", files["world_model"], "--model", "world_model", "--out", tmp_path / "r"],
        ["sample", runs["world_model"], files["world_model"], "--out", tmp_path / "d.nc"],
    ):
        assert f"--{option} is of scenes" in refused(*command, f"--{option}", value)


def test_commands_of_scenes_say_so(runs, refused, tmp_path):
    for command in (
        ["score", runs["image_vae"], "--out", tmp_path / "s.csv"],
        ["compare", runs["world_model"]],
    ):
        assert "is a model of episodes, and this works on models of moving" in refused(*command)
    said = refused(
        "criticise", runs["image_vae"], "--sections", "guide", "--out", tmp_path / "r.html"
    )
    assert "--sections is of models of scenes" in said


def test_functions_refuse_runs_of_the_other_kind(runs, tiny_run, tiny_data, tmp_path):
    """Whichever function is first called, with whichever data: one sentence."""
    episodes = Run.load(runs["world_model"])
    page = {"out": tmp_path / "r.html", "progress": False}
    for data in (tiny_data, agent()):
        for ask in (
            lambda d: predict(episodes, d),
            lambda d: score_animacy(episodes, d),
            lambda d: interaction(episodes, d),
            lambda d: criticise(episodes, d, **page),
            lambda d: compare_runs([tiny_run, episodes], d),
            lambda d: elpd(episodes, d),
            lambda d: guide_quality(episodes, d),
            lambda d: use_of_latent(episodes, d),
            lambda d: forecast_all(episodes, d, horizon=2),
            lambda d: direct(episodes, objective="chase:a->b", recordings=d),
        ):
            with pytest.raises(ConfigError, match="world_model is a model of episodes, and this"):
                ask(data)
        for ask in (
            lambda d: predict_episodes(tiny_run, d),
            lambda d: criticise_episodes(tiny_run, d, **page),
        ):
            with pytest.raises(ConfigError, match="control_vae is a model of moving bodies, and"):
                ask(data)
    with pytest.raises(DataError, match="no `position`, and control_vae is a model of moving"):
        predict(tiny_run, agent())
    assert not (tmp_path / "r.html").exists()


def test_episodes_of_many_lengths_are_looked_at_where_most_frames_are(runs, tmp_path):
    """As found: one long episode made windows so long that it was the only one judged."""
    run, data, out = Run.load(runs["world_model"]), agent(), tmp_path / "r.html"
    length = np.array([6] * 7 + [14])
    terminal = np.arange(14) == length[:, None] - 1
    data = data.assign(terminal=(data["terminal"].dims, terminal))
    data = data.assign_coords(length=("trajectory", length))
    criticise_episodes(run, data, out=out, progress=False)
    assert "9 of 6 frames" in out.read_text()
    criticise_episodes(run, data, out=out, frames=10, progress=False)
    assert "1 of 10 frames (7 episodes shorter, not looked at)" in out.read_text()


def test_the_runs_own_files_give_their_held_out_part(runs, files, refused, tmp_path, capfd):
    out = tmp_path / "d.nc"
    name = "world_model"
    assert main(["sample", str(runs[name]), str(files[name]), "--out", str(out)]) == 0
    assert "held-out part is used" in capfd.readouterr().err
    save_episodes(agent(seed=3), tmp_path / "more.nc")
    said = refused("sample", runs[name], files[name], tmp_path / "more.nc", "--out", tmp_path / "e")
    assert "was fitted to" in said
    assert (
        main(
            ["sample", str(runs[name]), str(tmp_path / "more.nc"), "--out", str(tmp_path / "f.nc")]
        )
        == 0
    )
    drawn = xr.open_datatree(tmp_path / "f.nc", engine="h5netcdf")
    assert drawn["observed_data"].sizes["trajectory"] == 8


@pytest.mark.parametrize("name", MODELS)
def test_episodes_that_changed_since_the_fit_are_not_said_to_be_held_out(name, files, runs):
    """Without one of them others are drawn; where by chance the same, they are held out still."""
    run, dataset = Run.load(runs[name]), read_episodes(files[name])
    held, train = run.heldout(dataset)["trajectory"].to_numpy().tolist(), run.config.train
    others = [dataset.drop_sel(trajectory=one) for one in dataset["trajectory"].to_numpy()]
    drawn = [split_episodes(x, train.heldout, train.validation, train.seed)[3] for x in others]
    same = [part["trajectory"].to_numpy().tolist() == held for part in drawn]
    assert not all(same)
    for other, alike in zip([*others, DATA[name](seed=1)], [*same, False], strict=True):
        for part in (run.heldout, run.fitted):
            changed = pytest.raises(RunError, match="its recordings have changed since the fit")
            with nullcontext() if alike else changed:
                part(other)


def test_a_folder_of_episodes_is_its_files(tmp_path, capfd, refused):
    """To fit, to go on, and to know a run's own episodes, however and in whatever order given."""
    folder, run = tmp_path / "episodes", tmp_path / "run"
    folder.mkdir()
    for n in range(2):
        save_episodes(agent(seed=n), folder / f"{n}.npz")
    files = [str(folder / f"{n}.npz") for n in range(2)]
    fits = ["fit", "--model", "world_model", "--preset", "debug"]
    assert main([*fits, str(folder), "--out", str(run)]) == 0
    assert main([*fits, *files, "--out", str(tmp_path / "other")]) == 0
    assert_same_run(run, tmp_path / "other")
    assert main(["fit", "--resume", str(run)]) == 0
    held = Run.load(run).heldout(read_episodes(folder))["trajectory"].to_numpy()
    for n, given in enumerate(([], [folder], files, files[::-1])):
        out = tmp_path / f"{n}.nc"
        capfd.readouterr()
        words = ["sample", str(run), *map(str, given), "--draws", "1", "--out", str(out)]
        assert main(words) == 0
        assert ("held-out part is used" in capfd.readouterr().err) == bool(given)
        with xr.open_datatree(out, engine="h5netcdf") as tree:
            assert set(tree["observed_data"]["trajectory"].to_numpy()) <= set(held)
    assert "was fitted to" in refused("sample", run, files[0], "--out", tmp_path / "d.nc")
    (folder / "notes.csv").write_text("episode,driver\n")  # lies beside them, and is not read
    assert main(["sample", str(run), str(folder), "--draws", "1", "--out", f"{folder}.nc"]) == 0
    save_episodes(agent(seed=2), folder / "00.npz")
    words = ["sample", str(run), "--draws", "1", "--out", str(tmp_path / "more.nc")]
    assert main(words) == 0
    with xr.open_datatree(tmp_path / "more.nc", engine="h5netcdf") as tree:
        assert set(tree["observed_data"]["trajectory"].to_numpy()) <= set(held)
    said = refused("fit", folder, "--out", tmp_path / "r")
    assert "0.npz: holds episodes" in said
    (tmp_path / "none").mkdir()
    said = refused("fit", tmp_path / "none", "--model", "world_model", "--out", tmp_path / "r")
    assert "none: no episodes" in said


def test_latent_use_is_that_of_the_guide(runs):
    """KL of each dimension beside the closed form, and its sum beside the term of the bound."""
    run = Run.load(runs["image_vae"])
    cut, _ = windows(film(), 4, 50)
    use = latent_use(run, cut, seed=0)
    x = torch.from_numpy(cut["image"].to_numpy()).movedim(-1, 2).float() / 255
    with torch.no_grad():
        q = run.guide.encode(x).base_dist
    kl = (q.loc**2 + q.scale**2 - 1) / 2 - q.scale.log()
    np.testing.assert_allclose(use["kl"], kl, rtol=1e-4, atol=1e-6)
    variance = q.loc.flatten(0, 1).var(0)
    np.testing.assert_allclose(use["activity"], variance, rtol=1e-4)
    assert (active(use) == (variance > 0.01).numpy()).all()
    run = Run.load(runs["world_model"])
    cut, _ = windows(agent(), 5, 50)
    use = latent_use(run, cut, seed=0)
    elbo = ScaledELBO()
    torch.manual_seed(0)
    elbo.loss(run.model, run.guide, EpisodeWindows(cut, 5).batch(torch.arange(len(cut.trajectory))))
    assert use["kl"].sum().item() == pytest.approx(elbo.terms["latent"].item(), rel=1e-4)
