"""Exported policies against ours: SB3's to the last bit, files to rounding, and the loader that the text shows."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import metarl
from metarl import train
from metarl.analysis.agent import AdaptedPolicy
from metarl.integrations import export, sb3
from metarl.nets import from_module
from metarl.settings import SettingsError

TEXT = pathlib.Path(export.__file__).with_name("README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)

# what a policy can be made of: standardised or not, an oracle's task, a context, another activation, no hidden layer, choices
FORMS = {
    "standardised": ("halfcheetah-vel", None, {"horizon": 10}, {"normalize_observations": True}),
    "oracle": ("navigation-2d", None, {"oracle": True, "horizon": 10}, {"normalize_observations": True}),
    "context": ("navigation-2d", "cavia-trpo", {"horizon": 10}, {"normalize_observations": True}),
    "rates": ("navigation-2d", "meta-sgd-trpo", {"horizon": 10}, {"activation": "relu"}),
    "linear": ("hopper-vel", None, {"horizon": 10}, {"hidden_sizes": [], "normalize_observations": False}),
    "choices": ("tabular-mdp", None, {}, {"normalize_observations": False}),
}
# one policy for all intersections together; one that they share is no plain stack of layers
MASKED = (
    "traffic-demand",
    None,
    {"horizon": 3},
    {"normalize_observations": True, "hidden_sizes": [8], "shared_policy": False},
)


@pytest.fixture(scope="module", params=FORMS)
def policy(request, adapted):
    env, algo, own, settings = FORMS[request.param]
    return adapted(env, algo, own, **settings)


def test_the_sb3_policy_predicts_bit_for_bit(policy, observations):
    """Transposed or swapped layers, torch's own tanh, statistics left out, a product in another order, a forgotten context."""
    exported, seen = sb3.to_sb3(policy), observations(policy)
    actions = policy.act(seen)
    np.testing.assert_array_equal(
        exported.predict(seen, deterministic=True)[0], np.squeeze(actions, -1) if policy.spec.choices else actions
    )
    for row in seen[:50]:
        np.testing.assert_array_equal(np.ravel(exported.predict(row, deterministic=True)[0]), policy.act(row))
    assert len(np.unique(actions)) > 2
    if policy.spec.choices is None:
        described = policy.policy.distribution(policy.params, torch.zeros(1, 1, _inputs(policy)))
        assert torch.equal(exported.log_std.detach(), described[1][0])


def _inputs(policy):
    return policy.spec.observation_size + len(policy.context)


def test_an_sb3_policy_survives_its_file(adapted, observations, tmp_path):
    """A constructor that SB3 cannot repeat, or statistics that are not in its file."""
    policy = adapted("halfcheetah-vel", None, {"horizon": 10}, normalize_observations=True)
    exported, seen = sb3.to_sb3(policy), observations(policy)
    exported.save(tmp_path / "policy.zip")
    again = sb3.SB3Policy.load(tmp_path / "policy.zip")
    np.testing.assert_array_equal(again.predict(seen, deterministic=True)[0], policy.act(seen))


def test_sb3_goes_on_training(adapted, observations):
    """Weights that PPO's optimiser does not have, or that are copied into the value network."""
    policy = adapted("halfcheetah-vel", None, {"horizon": 10}, normalize_observations=True)
    env = sb3.FamilyVecEnv("halfcheetah-vel", 2, settings={"horizon": 5})
    kwargs = sb3.policy_kwargs(policy)
    model = PPO(sb3.SB3Policy, env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=kwargs, device="cpu", seed=0)
    sb3.copy_weights(policy, model.policy)
    seen = observations(policy)
    np.testing.assert_array_equal(model.predict(seen, deterministic=True)[0], policy.act(seen))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(16)
    changed = {name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in model.policy.named_parameters()}, "statistics stay, all weights move"


def test_the_global_generator_is_left_alone(adapted):
    """An export that changes what a program draws afterwards."""
    policy, before = adapted("navigation-2d", None, {"horizon": 5}), torch.get_rng_state()
    sb3.to_sb3(policy)
    assert torch.equal(torch.get_rng_state(), before)


def _loaded(path):
    """What the text shows, as it stands."""
    (snippet,) = (text for text in SNIPPETS if "safe_open" in text)
    assert (
        len([line for line in snippet.partition("\n\n\n")[2].splitlines() if line.strip()]) <= 12
    )  # ten, and two for choices
    session = {}
    exec(snippet.replace('"policy.safetensors"', repr(str(path))), session)
    return session["act"]


def test_ten_lines_load_what_was_written(policy, observations, tmp_path):
    """A tensor that is missing in the file, a transposed one, or words that the loader does not understand."""
    export.to_safetensors(policy, tmp_path / "policy.safetensors")
    act, seen = _loaded(tmp_path / "policy.safetensors"), observations(policy)
    actions = np.array([act(row) for row in seen])
    assert _differences(actions, policy.act(seen)) < (1e-5 if policy.spec.choices is None else 0.01)


def test_masked_choices_are_legal_in_ten_lines(adapted, observations, tmp_path):
    """An illegal choice, or a mask looked for in the wrong column."""
    policy = adapted(*MASKED[:3], **MASKED[3])
    export.to_safetensors(policy, tmp_path / "policy.safetensors")
    act, seen = _loaded(tmp_path / "policy.safetensors"), observations(policy)[:200]
    assert _differences(np.array([act(row) for row in seen]), policy.act(seen)) < 0.01
    with pytest.raises(SettingsError, match="no action masks"):
        sb3.to_sb3(policy)


def _differences(ours, theirs):
    """Return the largest difference of numbers, or the fraction of different choices: rounding may decide close calls."""
    assert ours.shape == theirs.shape
    if np.issubdtype(theirs.dtype, np.integer):
        return np.mean(ours != theirs)
    return np.abs(ours - theirs).max()


@pytest.mark.slow  # of torch's exporter
def test_onnx_agrees(policy, observations, tmp_path):
    """A graph of another batch size, without the clipping or the statistics, or one that rounds elsewhere."""
    _check_onnx(policy, observations(policy), tmp_path)


@pytest.mark.slow
def test_onnx_masks(adapted, observations, tmp_path):
    """A graph without the mask."""
    policy = adapted(*MASKED[:3], **MASKED[3])
    _check_onnx(policy, observations(policy), tmp_path)


def _check_onnx(policy, seen, folder):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    export.to_onnx(policy, folder / "policy.onnx")
    session = runtime.InferenceSession(folder / "policy.onnx")
    for part in (seen, seen[:1]):
        (actions,) = session.run(["action"], {"observation": part})
        assert _differences(actions, policy.act(part)) <= (1e-5 if policy.spec.choices is None else 0.01)


@pytest.mark.parametrize("form", ["standardised", "choices"])
def test_the_module_of_the_graph_agrees(form, adapted, observations):
    """The same without ONNX, for installations that have it not."""
    env, algo, own, settings = FORMS[form]
    policy = adapted(env, algo, own, **settings)
    seen = observations(policy)
    with torch.no_grad():
        actions = export.Likeliest(export.plain(policy))(torch.tensor(seen)).numpy()
    assert _differences(actions, policy.act(seen)) <= (1e-5 if policy.spec.choices is None else 0.01)


def test_onnx_says_what_is_missing(adapted, monkeypatch, tmp_path):
    """A traceback of torch's."""
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"onnx and onnxscript: pip install .*\[onnx\]"):
        export.to_onnx(adapted("navigation-2d", None, {"horizon": 5}), tmp_path / "policy.onnx")


def test_what_cannot_be_exported_is_said(adapted, tmp_path):
    """A network of the user's own that is taken for another, or a file that cannot be written as a traceback."""
    policy = adapted("navigation-2d", None, {"horizon": 5})
    foreign = AdaptedPolicy(
        metarl.rl.GaussianPolicy(from_module(torch.nn.Linear(2, 2)), 2), policy.params, policy.spec, policy.context
    )
    for write in (sb3.to_sb3, lambda p: export.to_safetensors(p, tmp_path / "x"), lambda p: export.to_onnx(p, "x")):
        with pytest.raises(SettingsError, match="ModuleNet is not fully connected"):
            write(foreign)
    with pytest.raises(SettingsError, match="cannot be written"):
        export.to_safetensors(policy, tmp_path / "no" / "such")
    with pytest.raises(SettingsError, match="has a memory"):
        sb3.to_sb3("a memory")


def test_the_text_on_sb3_runs(tmp_path):
    """The other snippet as it stands but for the run's name and sizes, with a run that observes nothing of its task."""
    words = [
        "env=halfcheetah-vel",
        "env.horizon=5",
        "meta_batch_size=2",
        "episodes_per_task=2",
        "iterations=1",
        "threads=1",
    ]
    assert train.main([*words, "eval_every=0", f"run_dir={tmp_path / 'x'}"]) == 0
    (snippet,) = (text for text in SNIPPETS if "PPO" in text)
    for shown, small in {
        '"runs/x"': repr(str(tmp_path / "x")),
        "learn(100_000)": "learn(16)",
        "num_envs=8": "num_envs=2",
    }.items():
        assert shown in snippet
        snippet = snippet.replace(shown, small)
    snippet = snippet.replace(
        "policy_kwargs=", "n_steps=8, batch_size=8, settings_of_the_test=0, policy_kwargs="
    ).replace("settings_of_the_test=0, ", "")
    session = {}
    exec(snippet, session)
    assert session["model"].num_timesteps >= 16
    agent, observation = session["agent"], np.zeros(17, dtype=np.float32)
    unadapted = agent.unadapted()
    assert unadapted.act(observation).tolist() != session["policy"].act(observation).tolist()
    params = {name: value[0] for name, value in unadapted.params.items()}
    assert all(torch.equal(params[name], agent.meta[name]) for name in params)


def test_an_oracle_must_be_told_its_task(tmp_path):
    """A policy that is told zeros instead of its task."""
    words = [
        "env=navigation-2d",
        "env.horizon=5",
        "meta_batch_size=2",
        "episodes_per_task=2",
        "iterations=1",
        "threads=1",
    ]
    assert train.main([*words, "eval_every=0", "inner_steps=0", "env.oracle=true", f"run_dir={tmp_path / 'x'}"]) == 0
    agent = metarl.load(tmp_path / "x")
    with pytest.raises(SettingsError, match=r"unadapted\(\{...\}\)"):
        agent.unadapted()
    goal = {
        name.name: value for name, value in zip(metarl.make("navigation-2d").spec.parameters, (0.25, -0.5), strict=True)
    }
    np.testing.assert_allclose(agent.unadapted(goal).context, [0.5, -1.0])
