"""HiMo: where gradients go, what hindsight sees, and that it helps where the paper says so."""

import dataclasses
import functools
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import config, types
from podracer.agents.himo.agent import HiMo
from podracer.agents.himo.losses import hindsight_losses, look_ahead
from podracer.types import FIRST, LAST, MID, ActorOutput, EnvironmentSpec, Mode, TimeStep, Trajectory

A, T, B, K = 3, 6, 2, 2
SPEC = EnvironmentSpec(name="synthetic", observation=specs.Array((4,), np.float32), action=specs.DiscreteArray(A))
SMALL = {
    "torso.hidden": (8,),
    "core.size": 8,
    "head_hidden": (8,),
    "phi_hidden": (8,),
    "phi_hat_hidden": (8,),
    "lookahead": K,
    "unroll_length": T,
    "discount": 0.9,
    "q.replay_share": 0.5,
}
FORMS = ("vtrace", "r2d2")
EPISODES = [MID, MID, LAST, FIRST, MID, MID, MID]


@functools.cache  # agents are compiled once each
def make(base="vtrace", **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return HiMo(SPEC, config.override(HiMo.Config(), {**SMALL, "base": base, **changes}))


def unroll(agent, step_type, discount=None, seed=0):
    """Random data with the given step types `[T+1]`, of a window `[T+k+1]` for the form with action values, in every column."""
    rng = np.random.default_rng(seed)
    step_type = np.tile(np.array(step_type, np.int32)[:, None], (1, B))
    reward = np.where(step_type == FIRST, 0, rng.normal(size=step_type.shape)).astype(np.float32)
    discount = np.ones(step_type.shape) if discount is None else np.tile(np.array(discount)[:, None], (1, B))
    timestep = TimeStep(
        step_type=jnp.asarray(step_type),
        reward=jnp.asarray(reward),
        discount=jnp.asarray(discount, jnp.float32),
        observation=jnp.asarray(rng.normal(size=(*step_type.shape, 4)), jnp.float32),
    )
    output = ActorOutput(
        action=jnp.asarray(rng.integers(A, size=(len(step_type) - 1, B)), jnp.int32),
        log_prob=jnp.full((len(step_type) - 1, B), -1.1),
    )
    return Trajectory(timestep=timestep, actor_output=output, actor_state=agent.initial_actor_state(B))


def window(base):
    """Step types of as many steps as the loss of a form sees: an episode ends within, and another is cut off."""
    return EPISODES if base == "vtrace" else [*EPISODES, *[MID] * K]


@functools.cache
def compiled(agent):
    """Loss and metrics, and the gradient of the loss and of every metric that is a number."""
    keys = jax.random.split(jax.random.key(0), B)

    def numbers(params, state, trajectory):
        loss, metrics = agent.loss(params, state, trajectory, keys)
        return {"total": loss, **{name: value for name, value in metrics.items() if name != "priority"}}

    return jax.jit(numbers), jax.jit(jax.jacrev(numbers))


def size(gradients, part):
    """The largest gradient of a part of the networks."""
    trunk = ("mlp", "gru")
    names = trunk if part == "trunk" else (part,)
    found = [
        jnp.max(jnp.abs(leaf)) for name, leaves in gradients.items() if name.split("/")[0] in names for leaf in leaves.values()
    ]
    assert found, part
    return float(max(found))


ROUTES = {
    "value_loss": {"trunk": True, "value": True, "phi_hat": False, "phi": False, "hindsight": False, "policy": False},
    "hindsight_loss": {"trunk": False, "value": False, "phi_hat": False, "phi": True, "hindsight": True, "policy": False},
    "model_loss": {"trunk": True, "value": False, "phi_hat": True, "phi": False, "hindsight": False, "policy": False},
    "policy_loss": {"trunk": True, "value": False, "phi_hat": False, "phi": False, "hindsight": False, "policy": True},
    "entropy": {"trunk": True, "value": False, "phi_hat": False, "phi": False, "hindsight": False, "policy": True},
}


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    """An agent of each form, its first state, and data."""
    agent = make(request.param)
    return agent, jax.jit(agent.init)(jax.random.key(0)), unroll(agent, window(request.param))


def test_gradients_go_where_the_paper_says(form):
    agent, state, trajectory = form
    gradients = compiled(agent)[1](state.params, state, trajectory)
    for loss, routes in ROUTES.items():
        if agent.config.base == "r2d2" and loss in ("policy_loss", "entropy"):
            continue
        for part, flows in routes.items():
            if agent.config.base == "r2d2" and part == "policy":
                continue
            assert (size(gradients[loss], part) > 0) == flows, (loss, part)


def test_the_loss_is_the_sum_of_its_parts(form):
    agent, state, trajectory = form
    numbers = compiled(agent)[0](state.params, state, trajectory)
    total = 0.5 * numbers["hindsight_loss"] + 0.5 * numbers["model_loss"]
    if agent.config.base == "r2d2":
        total += numbers["value_loss"]
    else:
        total += numbers["policy_loss"] + 0.5 * numbers["value_loss"] - 0.01 * numbers["entropy"]
    np.testing.assert_allclose(numbers["total"], total, rtol=1e-5)


@pytest.mark.parametrize("base", FORMS)
def test_the_baseline_has_as_many_parameters_and_learns_phi_hat_from_values(base):
    agent, himo = make(base, model_free=True), make(base)
    state = jax.jit(agent.init)(jax.random.key(0))
    same = jax.tree.map(jnp.array_equal, state.params, jax.jit(himo.init)(jax.random.key(0)).params)
    assert all(jax.tree.leaves(same))
    gradients = compiled(agent)[1](state.params, state, unroll(agent, window(base)))
    assert size(gradients["value_loss"], "phi_hat") > 0
    assert size(gradients["total"], "phi") == size(gradients["total"], "hindsight") == 0
    if base == "vtrace":
        assert size(gradients["policy_loss"], "phi_hat") > 0


def test_ablations_open_the_routes_that_they_name():
    agent = make(stop_phi=False, stop_state=False)
    state = jax.jit(agent.init)(jax.random.key(0))
    gradients = compiled(agent)[1](state.params, state, unroll(agent, EPISODES))
    assert size(gradients["model_loss"], "phi") > 0
    assert size(gradients["hindsight_loss"], "trunk") > 0
    assert size(gradients["value_loss"], "phi_hat") == 0


def test_phi_and_the_hindsight_value_stay_with_the_learner(form):
    agent, state, trajectory = form
    acting = {name.split("/")[0] for name in agent.actor_params(state)}
    everything = {name.split("/")[0] for name in state.params}
    needed = {"mlp", "gru", "phi_hat", "policy" if agent.config.base == "vtrace" else "value"}
    assert acting == needed
    assert set(state.target_params) == (set(agent.actor_params(state)) if agent.config.base == "r2d2" else set())
    assert everything - acting == {"phi", "hindsight"} | ({"value"} if agent.config.base == "vtrace" else set())
    # And it is enough to act with.
    timestep = jax.tree.map(lambda x: x[0], trajectory.timestep)
    keys = jax.random.split(jax.random.key(0), B)
    output, _ = agent.act(agent.actor_params(state), agent.initial_actor_state(B), timestep, keys, Mode.TRAIN)
    assert output.action.shape == (B,)


def brute_look_ahead(step_type, k):
    final = len(step_type) - 1
    found = []
    for t in range(final + 1):
        end = next((s for s in range(t, final + 1) if step_type[s] == LAST), None)
        step = t + k if end is None else min(t + k, end)
        found.append((min(step, final), float(step <= final and step_type[t] != LAST)))
    return np.array(found)


@pytest.mark.parametrize("k", [0, 1, 3, 9])
@pytest.mark.parametrize(
    "step_type", [EPISODES, [FIRST] + [MID] * 6, [LAST, FIRST, LAST, FIRST, LAST], [LAST, LAST, FIRST, MID, MID, LAST]]
)
def test_look_ahead_stops_at_the_end_of_the_episode_and_of_the_unroll(step_type, k):
    timestep = unroll(make(), step_type).timestep
    step, mask = look_ahead(timestep, k)
    expected = brute_look_ahead(step_type, k)
    for column in range(B):
        np.testing.assert_array_equal(mask[:, column], expected[:, 1])
        real = expected[:, 1] == 1
        np.testing.assert_array_equal(step[real, column], expected[real, 0])


@functools.cache
def in_hindsight(agent):
    def run(params, timestep):
        hidden = agent._networks.unroll(params, timestep, (), agent.initial_actor_state(B).core)[0]
        phi_hat = agent._networks.phi_hat(params, hidden)
        target = jnp.ones(hidden.shape[:2])[:-1]
        return hindsight_losses(params, agent._networks, agent.config, timestep, hidden, phi_hat[:-1], target, None)

    return jax.jit(run)


def moved(timestep, steps):
    return timestep.replace(observation=timestep.observation.at[steps].add(1.0))


@pytest.mark.parametrize("phi_input", ["state", "observation"])
def test_what_comes_after_an_episode_changes_none_of_its_losses(phi_input):
    agent = make(lookahead=4, phi_input=phi_input)
    params = jax.jit(agent.init)(jax.random.key(0)).params
    timestep = unroll(agent, EPISODES).timestep
    before = in_hindsight(agent)(params, timestep)
    after = in_hindsight(agent)(params, moved(timestep, slice(3, None)))
    for name in ("value_loss", "model_loss"):
        np.testing.assert_array_equal(getattr(before, name)[:3], getattr(after, name)[:3])
    own = in_hindsight(agent)(params, moved(timestep, 2))  # the control: its own LAST is what it looks at
    assert np.all(np.asarray(own.value_loss[:2]) != np.asarray(before.value_loss[:2]))
    np.testing.assert_array_equal(before.value_loss[2:4] == 0, [[True] * B, [True] * B])  # LAST; and too near the unroll's end


@pytest.mark.parametrize(("k", "sees"), [(0, False), (1, True)])
def test_without_lookahead_hindsight_sees_no_more_than_the_value_does(k, sees):
    agent = make(lookahead=k, core__kind="none")
    params = jax.jit(agent.init)(jax.random.key(0)).params
    timestep = unroll(agent, [MID] * (T + 1)).timestep
    before, after = in_hindsight(agent)(params, timestep), in_hindsight(agent)(params, moved(timestep, 3))
    assert bool(jnp.any(before.value_loss[2] != after.value_loss[2])) == sees
    assert jnp.all(before.value_loss[3] != after.value_loss[3])


def test_an_unroll_of_two_episodes_is_its_two_halves():
    agent = make()
    state = jax.jit(agent.init)(jax.random.key(0))
    whole = unroll(agent, [FIRST, MID, LAST, FIRST, MID, MID, LAST], [1, 1, 0, 1, 1, 1, 1])

    def part(start, stop):
        return whole.replace(
            timestep=jax.tree.map(lambda x: x[start : stop + 1], whole.timestep),
            actor_output=jax.tree.map(lambda x: x[start:stop], whole.actor_output),
        )

    numbers = compiled(agent)[0]
    both, first, second = (numbers(state.params, state, data) for data in (whole, part(0, 2), part(3, 6)))
    for name in ("total", "value_loss", "hindsight_loss", "model_loss"):
        np.testing.assert_allclose(6 * both[name], 2 * first[name] + 3 * second[name], rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_the_value_is_bounded_by_those_of_hindsight_and_model(seed):
    """`L(vm) <= 2 (|w|^2 L_model + L(v+))` for linear values that share their weights, `w` those of the features."""
    agent = make(head_hidden=(), lookahead=3)
    state = jax.jit(agent.init)(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), state.params)
    params["value/linear"] = params["hindsight/linear"]
    # An episode that ends with the unroll: every step has a hindsight value, and all three are means over the same steps.
    numbers = compiled(agent)[0](params, state, unroll(agent, [FIRST, *[MID] * 5, LAST], seed=seed))
    weight = params["value/linear"]["w"][-agent.config.phi_size :]
    squared = lambda name: 2 * numbers[name]  # noqa: E731 - the losses are halves
    model = agent.config.phi_size * numbers["model_loss"]  # of a mean over features, their sum
    bound = 2 * (jnp.sum(weight**2) * model + squared("hindsight_loss"))
    assert 0 < squared("value_loss") <= bound


def test_acting_and_learning_agree_across_the_end_of_an_episode():
    agent = make(remember=True)
    params = jax.jit(agent.init)(jax.random.key(0)).params
    trajectory = unroll(agent, EPISODES)
    state, outputs = agent.initial_actor_state(B), []
    for t in range(T):
        keys = jax.random.split(jax.random.key(t), B)
        timestep = jax.tree.map(lambda x, t=t: x[t], trajectory.timestep)
        output, state = jax.jit(agent.act, static_argnums=4)(params, state, timestep, keys, Mode.TRAIN)
        outputs.append(output)
    trajectory = trajectory.replace(actor_output=jax.tree.map(lambda *x: jnp.stack(x), *outputs))
    hidden = agent._hidden(params, trajectory)[:-1]
    policy = agent._networks.policy(params, hidden, agent._networks.phi_hat(params, hidden))
    log_prob = agent._policy.log_prob(policy, trajectory.actor_output.action)
    np.testing.assert_allclose(log_prob, trajectory.actor_output.log_prob, atol=1e-5)


def changes(agent, state, trajectory, changed, names):
    numbers = compiled(agent)[0]
    before, after = numbers(state.params, state, trajectory), numbers(state.params, state, changed)
    return {name: bool(jnp.abs(before[name] - after[name]) > 1e-6) for name in names}


def test_a_window_is_burn_in_then_what_is_learned_then_what_is_looked_at():
    burn_in, names = 2, ("value_loss", "hindsight_loss", "model_loss")
    agent = make("r2d2", q__burn_in=burn_in, q__return_steps=1)
    assert agent.data_spec().overlap == burn_in + K
    state = jax.jit(agent.init)(jax.random.key(0))
    trajectory = unroll(agent, [MID] * (burn_in + T + K + 1))
    output, timestep = trajectory.actor_output, trajectory.timestep

    def other_action(step):
        action = output.action.at[step].set((output.action[step] + 1) % A)
        return trajectory.replace(actor_output=output.replace(action=action))

    def other_reward(step):
        return trajectory.replace(timestep=timestep.replace(reward=timestep.reward.at[step].add(1.0)))

    yes, no = dict.fromkeys(names, True), dict.fromkeys(names, False)
    both = {**yes, "model_loss": False}
    for step in (0, burn_in - 1, burn_in + T, burn_in + T + K - 1):
        assert changes(agent, state, trajectory, other_action(step), names) == no
    for step in (burn_in, burn_in + T - 1):
        assert changes(agent, state, trajectory, other_action(step), names) == both
    assert changes(agent, state, trajectory, other_reward(burn_in), names) == no  # it belongs to the step before
    assert changes(agent, state, trajectory, other_reward(burn_in + T), names) == both
    assert changes(agent, state, trajectory, other_reward(burn_in + T + 1), names) == no
    # The last step that is learned looks at the last time step of the window; the state comes from its very start.
    last = trajectory.replace(timestep=moved(timestep, burn_in + T + K - 1))
    assert changes(agent, state, trajectory, last, names) == {"value_loss": False, "hindsight_loss": True, "model_loss": True}
    beyond = trajectory.replace(timestep=moved(timestep, burn_in + T + K))
    assert changes(agent, state, trajectory, beyond, names) == no
    assert changes(agent, state, trajectory, trajectory.replace(timestep=moved(timestep, 0)), names) == yes


def test_burn_in_carries_no_gradient_and_gives_the_state_that_acting_had():
    plain, burned = make("r2d2"), make("r2d2", q__burn_in=2)
    params = jax.jit(plain.init)(jax.random.key(0)).params
    trajectory = unroll(plain, [MID, LAST, FIRST, *[MID] * T])
    np.testing.assert_allclose(plain._hidden(params, trajectory)[2:], burned._hidden(params, trajectory), atol=1e-6)
    into = jax.grad(
        lambda o: jnp.sum(burned._hidden(params, trajectory.replace(timestep=trajectory.timestep.replace(observation=o))))
    )
    trajectory = trajectory.replace(timestep=trajectory.timestep.replace(step_type=jnp.full((T + 3, B), MID)))
    gradient = into(trajectory.timestep.observation)
    np.testing.assert_array_equal(gradient[:2], 0)
    assert jnp.all(jnp.any(gradient[2:] != 0, axis=-1))


def test_priorities_and_importance_are_of_columns():
    agent = make("r2d2")
    state = jax.jit(agent.init)(jax.random.key(0))
    trajectory = unroll(agent, window("r2d2"))
    reward = trajectory.timestep.reward.at[1, 1].set(50.0)
    trajectory = trajectory.replace(timestep=trajectory.timestep.replace(reward=reward), importance=jnp.array([1.0, 0.0]))
    keys = jax.random.split(jax.random.key(0), B)
    loss, metrics = agent.loss(state.params, state, trajectory, keys)
    assert metrics["priority"].shape == (B,)
    assert metrics["priority"][1] > metrics["priority"][0] > 0
    one = jax.tree.map(lambda x: x[:, :1], (trajectory.timestep, trajectory.actor_output))
    alone = trajectory.replace(
        timestep=one[0], actor_output=one[1], actor_state=agent.initial_actor_state(1), importance=jnp.ones(1)
    )
    np.testing.assert_allclose(2 * loss, agent.loss(state.params, state, alone, keys[:1])[0], rtol=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"phi_size": 0},
        {"lookahead": T + 1},
        {"base": "r2d2", "q.burn_in": T - K + 1},
        {"discount": 1.5},
        {"q.target_period": 0},
    ],
)
def test_configurations_that_cannot_be(setting):
    with pytest.raises(ValueError, match="must be"):
        config.override(HiMo.Config(), {**SMALL, **setting})


def test_action_values_need_discrete_actions():
    spec = dataclasses.replace(SPEC, action=specs.BoundedArray((1,), np.float32, -1.0, 1.0))
    with pytest.raises(ValueError, match=r"agent\.base=vtrace"):
        HiMo(spec, HiMo.Config(base="r2d2"))
    assert isinstance(HiMo(spec, HiMo.Config()).initial_actor_state(1).core, types.Array)


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "himo.py"


@functools.cache
def benchmark():
    spec = importlib.util.spec_from_file_location("himo_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their own module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARK.parent))  # as for a script: it imports what benchmarks share
        spec.loader.exec_module(module)
    return module


def last_errors(num_updates=8000, seeds=4, **settings):
    """Over the last 1000 updates and all processes: squared errors of value and hindsight value, and the std of `phi`."""
    module = benchmark()
    params, errors = module.train_values(module.value_agent(**settings), num_updates, seeds)
    return {name: values[-1000:].mean() for name, values in errors.items()}, params


@pytest.mark.slow
def test_features_of_the_future_make_values_better():
    module = benchmark()
    himo, params = last_errors()
    model_free, _ = last_errors(model_free=True)
    unlearned, _ = last_errors(model_cost=0.0)  # the control: all is there but that the features are not modelled
    model_based = module.train_model_based(8000, 4)[-1000:].mean()
    assert himo["hindsight"] < 0.5 * himo["value"]
    assert himo["value"] < 0.75 * model_free["value"] < 0.75 * model_based
    assert unlearned["value"] > 0.75 * model_free["value"]
    assert np.all(module.signal_fit(module.value_agent(), params, 4) > 0.9)


@pytest.mark.slow
def test_features_that_learn_to_be_easy_to_model_collapse():
    stopped, _ = last_errors(3000, hindsight_cost=0.0)
    free, _ = last_errors(3000, hindsight_cost=0.0, stop_phi=False)
    assert stopped["phi_std"] > 0.3
    assert free["phi_std"] < 0.05 * stopped["phi_std"]
