"""Algorithms by name: each trains, resumes to the byte and adapts in the way that its name says."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

import metarl
from metarl import algorithms, evaluate, train
from metarl.core.params import expand
from metarl.run.arguments import read as train_arguments
from metarl.settings import SettingsError

SMALL = ("meta_batch_size=2", "episodes_per_task=2", "hidden_sizes=[4]", "eval_every=0", "threads=1", "inner_steps=2")
CASES = [("navigation-2d", name, ("env.horizon=8",)) for name in algorithms.names()]
RL_ONLY = ("trpo", "promp", "rl2")
CASES += [("sinusoid", name, ()) for name in algorithms.names() if not name.endswith(RL_ONLY)]
SURROGATES = ("logp", "dice", "loaded-dice")
CASES += [("navigation-2d", "maml-trpo", ("env.horizon=8", f"inner_surrogate={name}")) for name in SURROGATES]


@pytest.fixture(autouse=True)
def _threads():
    """The commands set torch's threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("env", "algo", "more"), CASES, ids=[f"{algo} {env} {more[-1:]}" for env, algo, more in CASES])
def test_an_algorithm_trains_and_goes_on_to_the_byte(tmp_path, capsys, env, algo, more):
    """Three iterations at once, and two with one after them: learned rates or counters that no checkpoint holds show."""

    def run(directory, iterations):
        small = [word for word in SMALL if algo != "rl2" or not word.startswith("inner_steps")]  # it has none
        words = [f"env={env}", f"algo={algo}", *more, *small]
        words += [f"iterations={iterations}", f"run_dir={directory}", "resume=auto"]
        assert train.main(words) == 0, capsys.readouterr().err
        checkpoint = directory / "checkpoints" / f"{iterations:08d}"
        return safetensors.torch.load_file(checkpoint / "tensors.safetensors")

    begun, whole = run(tmp_path / "parts", 2), run(tmp_path / "whole", 3)
    gone_on = run(tmp_path / "parts", 3)
    assert list(gone_on) == list(whole)
    assert all(torch.equal(gone_on[name], whole[name]) for name in whole)
    assert any(not torch.equal(begun[name], whole[name]) for name in whole if name.startswith("meta/"))


@pytest.mark.parametrize(
    ("env", "method", "algo"),
    [
        ("navigation-2d", "imaml", "imaml-trpo"),
        ("sinusoid", "imaml", "imaml-adam"),
        ("sinusoid", "cavia", "cavia-adam"),
        ("sinusoid", "reptile", "reptile"),
        ("navigation-2d", "maml-adam", "maml-adam"),
    ],
)
def test_a_method_without_a_rule_takes_the_familys(env, method, algo):
    """Catches images trained by a trust region; a whole name is left as it is."""
    assert train_arguments([f"env={env}", f"algo={method}"]).algo == algo
    assert algorithms.page(method) == algorithms.page(algo)


@pytest.mark.parametrize("name", ["imam", "trpo", "promp-adam", "maml-"])
def test_no_method_is_made_up(name):
    """Catches a suffix that is added to whatever is not known."""
    with pytest.raises(SettingsError, match="Unknown algorithm"):
        train_arguments(["env=navigation-2d", f"algo={name}"])


ADAPTED = {
    "maml-adam": {"0.weight", "0.bias", "1.weight", "1.bias"},
    "anil-adam": {"1.weight", "1.bias"},
    "cavia-adam": {"context"},
    "meta-sgd-adam": {"0.weight", "0.bias", "1.weight", "1.bias"},
}


@pytest.mark.parametrize("algo", ADAPTED)
def test_what_adapts_is_what_the_name_says(algo):
    """Catches a preset whose inner rule adapts more, or less."""
    learner = metarl.build("sinusoid", algo, hidden_sizes=(4,), meta_batch_size=3, threads=1)
    state = learner.init(0)
    trail = learner.explore(state.meta, learner.domain.sample_tasks(3, "train", (0,)), (0,), 2)
    given = expand(state.meta, 3)
    assert {name for name in given if not torch.equal(given[name], trail.params[name])} == ADAPTED[algo]


def test_learned_rates_are_learned(tmp_path):
    """Meta-SGD at the start is MAML with the same rate; afterwards its rates differ from each other."""
    maml, learned = (
        metarl.build("sinusoid", algo, hidden_sizes=(4,), meta_batch_size=3, threads=1)
        for algo in ("maml-adam", "meta-sgd-adam")
    )
    states = [maml.init(0), learned.init(0)]
    assert {n: v.shape for n, v in states[1].meta.items() if n.startswith("rate.")} == {
        f"rate.0.{n}": v.shape for n, v in states[0].meta.items()
    }
    first, second = maml.iteration(states[0])[1], learned.iteration(states[1])[1]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    state = states[1]
    for _ in range(3):
        state, _ = learned.iteration(state)
    assert len(state.meta["rate.0.0.weight"].unique()) > 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"adapt": ("9.*",)}, r"nothing to adapt: '9\.\*' meets none of 0\.weight"),
        ({"adapt": ()}, r"algo\.adapt=\[\] adapts nothing"),
        ({"rates_steps": 2}, r"algo\.rates_steps=2 needs learned rates: algo\.rates=tensor or weight"),
        (
            {"rates": "tensor", "rates_steps": 2},
            r"algo\.rates_steps=2 is more than inner_steps=1: rates of later steps",
        ),
        ({"adapt": "head"}, r"algo\.adapt=head must be a list such as algo\.adapt=\[head\]"),
        ({"rates": "weigth"}, r"algo\.rates=weigth is not one of .* Did you mean 'weight'\?"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, reason):
    """One line that names the culprit, before anything is computed."""
    with pytest.raises(SettingsError, match=reason):
        metarl.build("sinusoid", "maml-adam", algo_settings=settings, hidden_sizes=(4,)).init(0)


@pytest.mark.parametrize(
    ("algo", "settings", "reason"),
    [
        ("meta-sgd-trpo", {}, "needs predictions that are a distribution"),
        ("promp", {}, "needs predictions that are a distribution"),
        ("maml-adam", {"exploration": 1.0}, "exploration=1 needs actions whose choice it can reward"),
    ],
)
def test_reinforcement_learning_alone_has_actions(algo, settings, reason):
    """A regression has no likelihood ratios to clip and no actions to reward."""
    with pytest.raises(SettingsError, match=reason):
        metarl.build("sinusoid", algo, **settings)


@pytest.mark.parametrize(("env", "inner_lr", "strength"), [("tabular-mdp", 1.5, 2.0), ("navigation-2d", 0.5, 4.0)])
def test_a_first_step_that_is_too_long_for_the_pull_does_no_harm(env, inner_lr, strength):
    """Steps of 1.5 against a pull of 2 threw tabular policies 3000 units away; 0.5 against 4 jumped from side to side."""
    learner = metarl.build(env, "imaml-trpo", algo_settings={"strength": strength}, inner_lr=inner_lr)
    params = expand(learner.init(0).meta, 2)
    support = learner.domain.collect(params, learner.domain.sample_tasks(2, "train", (0,)), (0, 0), "support").data
    solution = learner.inner.solve(params, support)
    assert (solution.residual < 0.01).all()
    assert max((v - params[n]).abs().max() for n, v in solution.params.items()) < 1


@pytest.mark.parametrize(
    ("env", "algo", "settings", "reason"),
    [
        ("navigation-2d", "reptile", {"exploration": 1.0}, "exploration=1 has no effect with Reptile"),
        ("navigation-2d", "reptile", {"entropy_bonus": 0.1}, "entropy_bonus=0.1 has no meaning with algo=reptile"),
        ("navigation-2d", "maml-trpo", {"exploration": 1.0, "inner_steps": 0}, "no meaning with inner_steps=0"),
        ("navigation-2d", "maml-trpo", {"dice_decay": 0.5}, "no meaning with inner_surrogate=lvc"),
        ("sinusoid", "maml-adam", {"inner_surrogate": "dice"}, "no meaning with env=sinusoid: labelled shots"),
        ("sinusoid", "maml-adam", {"gamma": 0.9}, "no meaning with env=sinusoid: labelled shots"),
    ],
)
def test_what_would_change_nothing_is_refused(env, algo, settings, reason):
    """Each of these trained, to the byte, what it trains without the setting."""
    with pytest.raises(SettingsError, match=reason):
        metarl.build(env, algo, **settings)


@pytest.mark.parametrize("surrogate", ["dice", "loaded-dice"])
def test_a_surrogate_without_values_is_no_problem_to_solve(surrogate):
    """DiCE's loss is 0 everywhere: with the pull toward the start every step is worse, and no policy would ever adapt."""
    with pytest.raises(
        SettingsError, match=r"algo=imaml-trpo: its solver compares losses, and DiCE's are 0 everywhere"
    ):
        metarl.build("navigation-2d", "imaml-trpo", inner_surrogate=surrogate)


def test_e_maml_learns_from_what_it_sampled():
    """The term changes the meta-gradient, and reaches it through the command's own names."""
    settings = {"meta_batch_size": 3, "episodes_per_task": 2, "hidden_sizes": (4,), "threads": 1}
    norms = []
    for algo, more in (
        ("e-maml-trpo", {}),
        ("e-maml-trpo", {"exploration": 0.0}),
        ("maml-trpo", {"inner_surrogate": "logp"}),
    ):
        learner = metarl.build("navigation-2d", algo, env_settings={"horizon": 8}, **settings, **more)
        norms.append(learner.iteration(learner.init(0))[1]["gradient_norm"])
    assert norms[1] == norms[2]
    assert norms[0] != pytest.approx(norms[1], rel=0.01)


@pytest.mark.parametrize("setting", ["first_order", "rates", "rates_steps"])
def test_reptile_has_no_settings_of_a_meta_gradient_that_it_does_not_take(setting):
    """Rates that are said to be learned, and never move."""
    with pytest.raises(SettingsError, match=f"Unknown setting 'algo.{setting}'"):
        algorithms.make("reptile", **{setting: 1})


@pytest.mark.parametrize("algo", [name for name in algorithms.names() if name != "rl2"])
def test_training_without_adapting_learns_what_adapting_starts_from(algo):
    """A reference that never changes (Reptile), or whose context was learned and is set to 0 by the first update (CAVIA)."""
    build = {"inner_steps": 0, "meta_batch_size": 2, "episodes_per_task": 2, "hidden_sizes": (4,), "threads": 1}
    if algo.startswith(("reptile", "cavia")):
        with pytest.raises(
            SettingsError, match=r"inner_steps=0 does not fit this algorithm: .*; choose algo=maml-adam"
        ):
            metarl.build("navigation-2d", algo, **build)
        return
    learner = metarl.build("navigation-2d", algo, env_settings={"horizon": 8}, **build)
    start = learner.init(0)
    state, metrics = learner.iteration(start)
    assert metrics["pre_return"] == metrics["post_return"]
    moved = {name for name in start.meta if not torch.equal(start.meta[name], state.meta[name])}
    assert moved == {name for name in start.meta if not name.startswith("rate.")}


@pytest.mark.parametrize("algo", algorithms.names())
def test_an_algorithm_has_a_page(algo, capsys):
    """Equation, reference with the identifier that the list names, differences, when to use it; its own name in the title."""
    assert algorithms.main([algo]) == 0
    shown = capsys.readouterr().out
    assert shown == algorithms.page(algo)
    assert f"`{algo}`" in shown.splitlines()[0]
    for part in ("**Equation.**", "**Reference.**", "**What differs from the ", "**When to use it.**"):
        assert part in shown
    own = algorithms.lookup(algo).paper
    assert own[own.index("arXiv:") :].split(",")[0].split(";")[0] in shown


def test_every_algorithm_is_listed_and_unknown_ones_get_the_nearest(capsys):
    assert algorithms.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown for name in algorithms.names())
    assert algorithms.main(["prompt"]) == 2
    assert capsys.readouterr().err == "error: Unknown algorithm 'prompt'. Did you mean 'promp'?\n"


@pytest.fixture
def trained(tmp_path, capsys):
    """Train two iterations on sinusoid by an algorithm; return the exit code, the directory and what was written to stderr."""

    def run(name, algo, *words):
        words = [
            *words,
            "env=sinusoid",
            f"algo={algo}",
            "hidden_sizes=[4]",
            "meta_batch_size=2",
            "eval_every=0",
            "threads=1",
        ]
        code = train.main([*words, "iterations=1", f"run_dir={tmp_path / name}"])
        return code, tmp_path / name, capsys.readouterr().err

    return run


def test_a_warm_start_from_another_algorithm_names_what_is_missing(trained):
    """ "rate.0.0.weight is None there; use the same hidden_sizes": they are the same."""
    source = trained("maml", "maml-adam")[1]
    code, _, shown = trained("other", "cavia-adam", f"init_from={source}")
    assert code == 2
    assert "another network: context is missing there and" in shown
    assert "use the same hidden_sizes, family and algorithm" in shown
    assert trained("implicit", "imaml-adam", f"init_from={source}")[0] == 0  # it has the same parameters


def test_a_warm_start_with_learned_rates_takes_the_weights_and_starts_the_rates_afresh(trained):
    """A run of weights alone, pretraining say, lacks them; a run that has learned rates hands its own on."""
    source = trained("maml", "maml-adam")[1]
    code, learned, _ = trained("rates", "meta-sgd-adam", f"init_from={source}", "inner_lr=0.25", "algo.lr=1e-9")
    assert code == 0
    before, after = metarl.load(source).meta, metarl.load(learned).meta
    assert all(torch.allclose(after[name], value) for name, value in before.items())
    assert torch.allclose(after["rate.0.0.weight"], torch.tensor(0.25))
    code, again, _ = trained("again", "meta-sgd-adam", f"init_from={learned}", "inner_lr=0.5", "algo.lr=1e-9")
    assert code == 0
    assert torch.allclose(metarl.load(again).meta["rate.0.0.weight"], torch.tensor(0.25))


@pytest.mark.parametrize("word", ["tune=true", "inner_lr=0.1"])
def test_step_sizes_for_a_solver_are_refused_before_anything_is_evaluated(trained, capsys, monkeypatch, word):
    """A line that names a class and no setting, after another run has been evaluated for an hour."""
    maml, implicit = (trained(algo, algo)[1] for algo in ("maml-adam", "imaml-adam"))
    monkeypatch.setattr(evaluate, "curve_of", lambda *_: pytest.fail("evaluated"))
    assert evaluate.main([f"run={maml}", f"compare=[{implicit}]", "tasks=2", word]) == 2
    assert "imaml-adam: the inner rule ProximalSolve has no step size to choose; leave" in capsys.readouterr().err
