"""Claims of HiMo, made small: Guez et al. 2020, https://arxiv.org/abs/2002.08329.

    python benchmarks/himo.py [values portals ablations] [--out DIR] [--processes N] [--seeds N] [--steps N]

* values, figure 2: the error of values in `hindsight/policy_evaluation`: of the value in hindsight, of the one that models its
  features, of a model-free one of the same capacity, and of one that models the next state. The settings are those of the
  authors' public example; each of the `--processes` is a random reward process with networks of its own.
* portals, figures 4 and 5: HiMo in IMPALA and its baseline of the same capacity in `hindsight/portal_choice`, through the
  Anakin runtime, and what logistic regression tells of the room's colour from the features of the future and from their model.
* ablations: the features learn to be easy to model; 1 and 16 features; the model's weight; and how far to look ahead, in one
  task or the other.

Prints a JSON line for each row and leaves tables (values.md, ...) and figures (values.png, ...) in `--out`.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from podracer import config, rng
from podracer.agents.himo.agent import HiMo
from podracer.agents.himo.config import PRESETS
from podracer.agents.himo.losses import look_ahead
from podracer.envs import hindsight
from podracer.launch import job as jobs
from podracer.types import FIRST, LAST, ActorOutput, Array, Key, Mode, TimeStep, Trajectory

EXPERIMENTS = ("values", "portals", "ablations")
_AXIS = "devices"
_BATCH, _BLOCK, _WIDTH = 64, 1000, 16
# The losses of an unroll of one transition; those of the preset count a pair that is none beside each.
_EXAMPLE: Mapping[str, Any] = {
    "unroll_length": 1,
    "vtrace.value_cost": 2.0,
    "hindsight_cost": 2.0,
    "model_cost": 3.0,
}
_POINTS = 24
_PROBED_ENVS, _PROBED_STEPS = 64, 80
_GOOD = 1.8


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table. figures: by column, `[S]` over seeds. curves: by name, `[P, S]` over `steps` `[P]`."""

    label: str
    figures: Mapping[str, np.ndarray]
    steps: np.ndarray
    curves: Mapping[str, np.ndarray]
    seconds: float


# Policy evaluation.


def value_agent(**settings: Any) -> HiMo:
    """The agent of the preset for `hindsight/policy_evaluation`, for unrolls of one transition."""
    preset = PRESETS["hindsight/policy_evaluation"].overrides
    own = {name.removeprefix("agent."): value for name, value in preset.items() if name.startswith("agent.")}
    spec = hindsight.PolicyEvaluation(hindsight.HindsightConfig()).spec
    return HiMo(spec, config.override(HiMo.Config(), {**own, **_EXAMPLE, **settings}))


def draw(process: hindsight.Process, key: Key) -> tuple[Array, Array, Array]:
    """A batch of transitions: `x`, `x'` `[64, D]` and rewards `[64]`."""
    x_key, noise_key = jax.random.split(key)
    size, distractors = process.outer_w.shape
    x = jax.random.normal(x_key, (_BATCH, size))
    noise = jax.random.normal(noise_key, (_BATCH, distractors))
    arrival, reward = jax.vmap(hindsight.arrive, in_axes=(None, 0, 0))(process, x, noise)
    return x, arrival, reward


def episodes_of(x: Array, arrival: Array, reward: Array) -> Trajectory:
    """Transitions as unrolls of length 1."""
    num = reward.shape[0]
    timestep = TimeStep(
        step_type=jnp.array([[FIRST], [LAST]], jnp.int32) * jnp.ones((1, num), jnp.int32),
        reward=jnp.stack([jnp.zeros(num), reward]),
        discount=jnp.stack([jnp.ones(num), jnp.zeros(num)]),
        observation=jnp.stack([x, arrival]),
    )
    output = ActorOutput(action=jnp.zeros((1, num), jnp.int32), log_prob=jnp.zeros((1, num)))
    return Trajectory(timestep=timestep, actor_output=output, actor_state=())


def train_values(agent: HiMo, num_updates: int, seeds: int) -> tuple[Any, dict[str, np.ndarray]]:
    """Updates of the agent on fresh transitions, a process for each seed.

    Returns:
      Parameters, leaves `[S, ...]`, and squared errors of `value` and `hindsight` and the `model`'s loss before each update,
      `[num_updates, S]`: every batch is new, so these are errors on unseen states.
    """

    def update(state: Any, trajectory: Trajectory, key: Key) -> Any:
        one = lambda s, t, k: agent.update(s, t, k, _AXIS)  # noqa: E731
        found = jax.vmap(one, in_axes=None, axis_name=_AXIS, axis_size=1)(state, trajectory, key)
        return jax.tree.map(lambda x: x[0], found)

    def run(process: hindsight.Process, key: Key) -> Any:
        def step(state: Any, t: Array) -> Any:
            own = jax.random.fold_in(key, t)
            trajectory = episodes_of(*draw(process, own)).replace(actor_state=agent.initial_actor_state(_BATCH))
            state, metrics = update(state, trajectory, jax.random.split(own, _BATCH))
            errors = {"value": 2 * metrics["value_loss"], "hindsight": 2 * metrics["hindsight_loss"]}
            return state, {**errors, "model": metrics["model_loss"], "phi_std": metrics["phi_std"]}

        state, errors = jax.lax.scan(step, agent.init(rng.stream(key, "init")), jnp.arange(num_updates))
        return state.params, errors

    params, errors = jax.jit(jax.vmap(run))(_processes(seeds), _keys(seeds))
    return params, {name: np.asarray(value).T for name, value in errors.items()}


def train_model_based(num_updates: int, seeds: int) -> np.ndarray:
    """Squared error `[num_updates, S]` of `v(x, x'^)`, where `v` learns from true arrivals and `x'^` is a model of them."""

    def networks(x: Array, arrival: Array) -> tuple[Array, Array, Array]:
        value = hk.nets.MLP((_WIDTH,) * 3 + (1,), name="value")
        modelled = hk.nets.MLP((_WIDTH, _WIDTH, x.shape[-1]), name="model")(x)
        of = lambda y: value(jnp.concatenate([x, y], axis=-1))[:, 0]  # noqa: E731
        return of(arrival), of(modelled), modelled

    net: hk.Transformed = hk.without_apply_rng(hk.transform(networks))
    optimizer = optax.adam(4e-3, eps=1e-3)

    def loss(params: Any, x: Array, arrival: Array, reward: Array) -> tuple[Array, Array]:
        value, tested, modelled = net.apply(params, x, arrival)
        fit, error = jnp.mean(jnp.square(value - reward)), jnp.mean(jnp.square(tested - reward))
        return fit + 3.0 * jnp.mean(jnp.square(modelled - arrival)), error

    def run(process: hindsight.Process, key: Key) -> Array:
        def step(carry: Any, t: Array) -> Any:
            params, opt_state = carry
            grads, error = jax.grad(loss, has_aux=True)(params, *draw(process, jax.random.fold_in(key, t)))
            change, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, change), opt_state), error

        params = net.init(rng.stream(key, "init"), *draw(process, key)[:2])
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_updates))[1]

    return np.asarray(jax.jit(jax.vmap(run))(_processes(seeds), _keys(seeds))).T


def signal_fit(agent: HiMo, params: Any, seeds: int) -> np.ndarray:
    """`[S]`: R^2 of the sum of the arrival's signals as a linear function of `phi`, on other transitions than the fit."""
    process = _processes(seeds)
    keys = jax.vmap(lambda key: jax.random.split(rng.stream(key, "probe"), 32))(_keys(seeds))
    _, arrival, _ = jax.vmap(jax.vmap(draw, in_axes=(None, 0)))(process, keys)
    arrival = arrival.reshape(seeds, -1, arrival.shape[-1])
    phi = np.asarray(jax.vmap(lambda p, x: agent._networks.phi(p, x))(params, arrival))
    signal = np.asarray(arrival)[..., process.outer_w.shape[-1] :].sum(-1)
    inputs, half = np.concatenate([phi, np.ones_like(phi[..., :1])], axis=-1), phi.shape[1] // 2
    scores = []
    for x, y in zip(inputs, signal, strict=True):
        weights = np.linalg.lstsq(x[:half], y[:half], rcond=None)[0]
        scores.append(1 - np.var(y[half:] - x[half:] @ weights) / np.var(y[half:]))
    return np.array(scores)


def _processes(seeds: int) -> hindsight.Process:
    return jax.tree.map(lambda *x: jnp.stack(x), *(hindsight.draw_process(seed) for seed in range(seeds)))


def _keys(seeds: int) -> Key:
    return jax.vmap(jax.random.key)(jnp.arange(seeds))


def _blocks(errors: np.ndarray) -> np.ndarray:
    """`[N, S]` to means over blocks of updates."""
    size = min(_BLOCK, len(errors))
    return errors[: len(errors) // size * size].reshape(-1, size, errors.shape[1]).mean(axis=1)


@functools.cache
def value_row(num_updates: int, seeds: int, **settings: Any) -> Row:
    """Trains an agent: errors in the last block of updates."""
    start = time.perf_counter()
    agent = value_agent(**settings)
    params, errors = train_values(agent, num_updates, seeds)
    learned = {"value"} if agent.config.model_free else set(errors)
    curves = {name: _blocks(value) for name, value in errors.items() if name in learned}
    figures = {"vm": curves["value"][-1]}
    if not agent.config.model_free:
        figures |= {"v+": curves["hindsight"][-1], "R2 of the signal": signal_fit(agent, params, seeds)}
        figures |= {"model loss": curves["model"][-1], "std of phi": curves["phi_std"][-1]}
    return Row("HiMo", figures, _BLOCK * np.arange(1, 1 + len(curves["value"])), curves, time.perf_counter() - start)


def value_rows(options: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Of `values`, with the task's name."""
    num_updates, processes = options.updates, options.processes
    himo = value_row(num_updates, processes)
    yield "policy_evaluation", himo
    yield "policy_evaluation", dataclasses.replace(value_row(num_updates, processes, model_free=True), label="model-free")
    start = time.perf_counter()
    error = _blocks(train_model_based(num_updates, processes))
    seconds = time.perf_counter() - start
    yield "policy_evaluation", Row("model-based", {"vm": error[-1]}, himo.steps, {"value": error}, seconds)


# Portal Choice.


class Probed(NamedTuple):
    """Accuracy `[S]` of the room's colour at `t + k`, told linearly from `phi(h_{t+k})` and from `phi_hat(h_t)`, at steps `t`
    in the start room.
    """

    phi: np.ndarray
    phi_hat: np.ndarray


@functools.cache
def portal_row(steps: int, seeds: int, **settings: Any) -> Row:
    """Trains a population: what it earns, and what a probe finds in its features."""
    start = time.perf_counter()
    request = jobs.Request(runtime="anakin", agent="himo", env="hindsight/portal_choice", steps=steps, seeds=seeds)
    settings = {f"agent.{name}": value for name, value in settings.items()}
    runtime, environment, _ = common.population(request, settings, points=_POINTS)
    roll_out = jax.jit(jax.vmap(functools.partial(_roll_out, runtime.agent, environment), in_axes=(0, 0)))

    def look(state: Any) -> Probed:
        params = state.train_state.params
        if seeds == 1:
            params = jax.tree.map(lambda x: x[None], params)
        return _probe(*roll_out(params, _keys(seeds)))

    done = common.train(runtime, steps, look=look, start=start)
    taken_steps, curve = done.steps[done.whole], done.metrics["episode_return"][done.whole]
    phi, phi_hat = (np.stack(values)[done.whole] for values in zip(*done.seen, strict=True))
    reached = np.array([taken_steps[np.argmax(column)] if column.any() else np.inf for column in (curve >= _GOOD).T])
    last = taken_steps > (1 - common.LAST_SHARE) * taken_steps[-1]
    figures = {
        f"steps to {_GOOD}": reached,
        "mean return": curve.mean(axis=0),
        "last return": curve[last].mean(axis=0),
        "phi tells colour": phi[last].mean(axis=0),
        "phi_hat tells colour": phi_hat[last].mean(axis=0),
    }
    curves = {"return": curve, "phi": phi, "phi_hat": phi_hat}
    return Row("HiMo", figures, taken_steps, curves, done.seconds)


def _roll_out(agent: HiMo, environment: Any, params: Any, key: Key) -> tuple[Array, ...]:
    """Plays with one seed's parameters. Returns `phi`, `phi_hat` `[T, B, d]`, whether `t + k` is green, and what counts."""
    vector = environment.vectorize(_PROBED_ENVS)
    keys = rng.columns(rng.stream(key, "probe"), jnp.arange(_PROBED_ENVS))
    env_state, timestep = vector.reset(keys)

    def step(carry: Any, t: Array) -> Any:
        env_state, timestep, actor_state = carry
        output, actor_state = agent.act(params, actor_state, timestep, rng.at(keys, 2 * t), Mode.TRAIN)
        env_state, following = vector.step(env_state, output.action, rng.at(keys, 2 * t + 1))
        return (env_state, following, actor_state), timestep

    actor_state = agent.initial_actor_state(_PROBED_ENVS)
    _, seen = jax.lax.scan(step, (env_state, timestep, actor_state), 1 + jnp.arange(_PROBED_STEPS))
    networks = agent._networks
    hidden = networks.unroll(params, seen, (), actor_state.core)[0]
    ahead = look_ahead(seen, agent.config.lookahead)
    future = jnp.take_along_axis(networks.future_input(hidden, seen.observation), ahead.step[..., None], axis=0)
    room = jnp.take_along_axis(seen.aux["room"], ahead.step, axis=0)
    counts = (ahead.mask == 1) & (seen.aux["room"] == hindsight.START) & (room != hindsight.START)
    return networks.phi(params, future), networks.phi_hat(params, hidden), room == hindsight.GREEN, counts


def _probe(phi: Array, phi_hat: Array, green: Array, counts: Array) -> Probed:
    """Fits on half of the environments and tests on the others. All `[S, T, B, ...]`."""
    half = _PROBED_ENVS // 2

    def accuracy(features: np.ndarray, label: np.ndarray, used: np.ndarray) -> float:
        sides = [(features[:, part][used[:, part]], label[:, part][used[:, part]]) for part in (slice(half), slice(half, None))]
        return _classify(*sides[0], *sides[1])

    seeds = [np.asarray(x) for x in (phi, phi_hat, green, counts)]
    return Probed(*(np.array([accuracy(x[s], seeds[2][s], seeds[3][s]) for s in range(len(x))]) for x in seeds[:2]))


def _classify(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy of logistic regression with a weak penalty; nan where there is too little to fit or test."""
    if min(len(y), len(test_y)) < 20 or y.all() or not y.any():
        return float("nan")
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-8
    inputs, tested = (np.concatenate([(z - mean) / std, np.ones((len(z), 1))], axis=1) for z in (x, test_x))
    sign = np.where(y, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (inputs @ w)
        slope = -sign / (1 + np.exp(np.clip(margin, -50, 50)))
        return float(np.logaddexp(0, -margin).mean() + 1e-4 * w @ w), inputs.T @ slope / len(y) + 2e-4 * w

    fitted = optimize.minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B")
    return float(np.mean((tested @ fitted.x > 0) == test_y))


def portal_rows(options: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Of `portals`, with the task's name."""
    yield "portal_choice", portal_row(options.steps, options.seeds)
    yield "portal_choice", dataclasses.replace(portal_row(options.steps, options.seeds, model_free=True), label="model-free")


def ablation_rows(options: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Of `ablations`, with the task's name. What `values` or `portals` have trained already is not trained again."""
    values: Mapping[str, Mapping[str, Any]] = {
        "d=3, beta=3": {},
        "phi not stopped": {"stop_phi": False},
        "d=1": {"phi_size": 1},
        "d=16": {"phi_size": 16},
        "beta=0": {"model_cost": 0.0},
        "beta=0.3": {"model_cost": 0.3},
    }
    portals: Mapping[str, Mapping[str, Any]] = {
        "k=4, beta=0.1": {},
        "k=0": {"lookahead": 0},
        "k=2": {"lookahead": 2},
        "k=8": {"lookahead": 8},
        "beta=0.5": {"model_cost": 0.5},
    }
    for name, change in values.items():
        yield "policy_evaluation", dataclasses.replace(value_row(options.updates, options.processes, **change), label=name)
    for name, change in portals.items():
        yield "portal_choice", dataclasses.replace(portal_row(options.steps, options.seeds, **change), label=name)


# Output.


_CONTROLS = ("model-free", "model-based")


def line(experiment: str, task: str, row: Row) -> dict[str, Any]:
    """What is printed, with one of the curves."""
    if task == "portal_choice":
        curve = common.curve(row.steps, row.curves["return"])
    else:
        curve = common.curve(row.steps, row.curves["value"], "updates", "squared error of values", log=True)
    return {
        "case": experiment,
        "title": f"HiMo: hindsight/{task}",
        "arm": row.label,
        "control": row.label in _CONTROLS,
        "figures": row.figures,
        "seconds": row.seconds,
        "curve": curve,
    }


def table(rows: Sequence[Row]) -> str:
    """Median (least to greatest) over seeds, in markdown."""
    columns = list(dict.fromkeys(name for row in rows for name in row.figures))
    cells = [[_cell(row.figures[name]) if name in row.figures else "" for name in columns] for row in rows]
    return common.table(["case", *columns], [[row.label, *own] for row, own in zip(rows, cells, strict=True)])


def _cell(values: np.ndarray) -> str:
    if np.nanmax(values, initial=0) > 1000:
        return ", ".join(f"{value / 1000:.0f}k" if np.isfinite(value) else "never" for value in np.sort(values))
    return common.spread(values, "{:.3f}")


def write_figure(panels: Sequence[tuple[Sequence[Row], Mapping[str, str], str, str]], path: Path) -> None:
    """A panel of curves for each of `panels`: rows, names of curves with their styles, and the axes' labels.

    A curve is the median over seeds, in the band of the quartiles.
    """
    figure, (axes,) = common.figure(len(panels), width=6)
    for panel, (rows, styles, x_label, y_label) in zip(axes, panels, strict=True):
        for i, row in enumerate(rows):
            for name, style in styles.items():
                if name in row.curves:
                    label = row.label if len(styles) == 1 else f"{row.label}, {name}"
                    common.band(panel, row.steps, row.curves[name], label, f"C{i}", style)
        panel.set(xlabel=x_label, ylabel=y_label, yscale="log" if "error" in y_label else "linear")
        panel.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def run(experiment: str, options: argparse.Namespace) -> None:
    """One of EXPERIMENTS, with its output."""
    made: dict[str, list[Row]] = {"policy_evaluation": [], "portal_choice": []}
    found: Iterable[tuple[str, Row]] = {"values": value_rows, "portals": portal_rows, "ablations": ablation_rows}[experiment](
        options
    )
    for task, row in found:
        common.emit("himo", **line(experiment, task, row))
        made[task].append(row)
    tables = "\n".join(table(rows) for rows in made.values() if rows)
    (options.out / f"{experiment}.md").write_text(tables)
    print(tables, flush=True)
    values, portals = made.values()
    panels: list[Any] = []
    if values:
        panels.append((values, {"value": "-", "hindsight": "--"}, "updates", "squared error of values"))
    if portals:
        panels.append((portals, {"return": "-"}, "agent steps of one seed", "episode return (training)"))
        panels.append((portals, {"phi": "--", "phi_hat": "-"}, "agent steps of one seed", "accuracy of the room's colour"))
    write_figure(panels, options.out / f"{experiment}.png")


def main() -> None:
    parser = common.parser(__doc__, EXPERIMENTS, "himo_benchmark", seeds=5, steps=700_000)
    parser.add_argument(
        "--processes", type=int, default=8, help="of policy evaluation; --seeds and --steps are of Portal Choice"
    )
    parser.add_argument("--updates", type=int, default=8000, help="of policy evaluation")
    options = common.parse(parser, EXPERIMENTS)
    for experiment in options.cases:
        run(experiment, options)


if __name__ == "__main__":
    main()
