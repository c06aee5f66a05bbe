"""Speed of searching: MuZero's `act` against the bare search of mctx in it, and whole training.

    python benchmarks/search.py [gumbel puct] [--batch 64] [--simulations 32] [--width 64] [--rounds 7]

Prints one JSON line a kind of search. `act` and the bare search (networks at the root, then `mctx.gumbel_muzero_policy` or
`mctx.muzero_policy` over the whole batch with one key) have the same model, parameters and observations, those of CartPole, and
take turns within each round; `ratio` is the median over rounds of the bare search's time over that of `act`: 1 means that
all that `act` adds (a key of its own for every root, histories, temperatures) costs nothing. `agent_steps_per_second` is of
training in Anakin with that batch of environments and the loss and replay of the agent's preset for CartPole.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import mctx

from podracer import rng
from podracer.launch import job as jobs
from podracer.runtimes.anakin import Anakin
from podracer.search.config import SearchConfig
from podracer.types import Mode


def build(kind: str, batch: int, simulations: int, width: int) -> Anakin:
    """Anakin with MuZero on CartPole, otherwise as its preset has it."""
    settings = [
        f"anakin.num_envs={batch}",
        f"agent.search.kind={kind}",
        f"agent.search.num_simulations={simulations}",
        f"agent.torso.hidden=({width},)",
        f"agent.head_hidden=({width},)",
        f"agent.dynamics.size={width}",
    ]
    request = jobs.Request(runtime="anakin", agent="muzero", env="gymnax/CartPole-v1", settings=settings)
    job, _ = jobs.new_job(request)
    parts = jobs.build(job)
    return Anakin(parts.agent, parts.environment, parts.plan)


def bare_search(agent: Any, config: SearchConfig) -> Callable[[Any, Any, jax.Array], Any]:
    """`(params, observation [B, ...], key [])` to mctx's output, for the whole batch at once."""

    def model(params: Any, key: jax.Array, action: jax.Array, state: Any) -> Any:
        step = agent._step(params, state, action, key)
        return mctx.RecurrentFnOutput(
            reward=step.reward, discount=step.discount, prior_logits=step.policy, value=step.value
        ), step.state

    if config.kind == "gumbel":
        qtransform = functools.partial(mctx.qtransform_completed_by_mix_value, value_scale=config.value_scale)
        policy = functools.partial(
            mctx.gumbel_muzero_policy, qtransform=qtransform, max_num_considered_actions=config.max_considered_actions
        )
    else:
        policy = mctx.muzero_policy

    def search(params: Any, observation: Any, key: jax.Array) -> Any:
        logits, value, hidden = agent._predict(params, observation)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=hidden)
        return policy(params, key, root, model, config.num_simulations).action

    return search


def repeated(function: Callable[[jax.Array], Any]) -> Callable[[int], None]:
    """A compiled loop of `n` calls, each with its number, that blocks until done."""
    loop = jax.jit(lambda n: jax.lax.fori_loop(1, n, lambda i, _: function(i), function(jnp.int32(0))))
    return lambda n: jax.block_until_ready(loop(jnp.int32(n)))


def measure(kind: str, batch: int, simulations: int, width: int, seconds: float, rounds: int) -> dict[str, Any]:
    """One case."""
    runtime = build(kind, batch, simulations, width)
    agent, holder = runtime.agent, [runtime.init()]
    # Copies: training donates its state.
    params, actor_state, timestep = jax.tree.map(
        jnp.copy, (agent.actor_params(holder[0].train_state), holder[0].actor_state, holder[0].timestep)
    )
    keys, search = rng.columns(holder[0].key, holder[0].env_index), bare_search(agent, agent.config.search)

    def train(n: int) -> None:
        holder[0], _ = runtime.run(holder[0], n)

    functions = {
        "act": repeated(lambda i: agent.act(params, actor_state, timestep, rng.at(keys, i), Mode.TRAIN)[0].action),
        "bare": repeated(lambda i: search(params.params, timestep.observation, jax.random.fold_in(jax.random.key(0), i))),
        "train": train,
    }
    times = common.take_turns(functions, seconds, rounds)
    median = common.medians(times)
    ratios = [bare / act for bare, act in zip(times["bare"], times["act"], strict=True)]
    return {
        "kind": kind,
        "batch": batch,
        "simulations": simulations,
        "width": width,
        "searches_per_second": round(batch / median["act"]),
        "bare_searches_per_second": round(batch / median["bare"]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "agent_steps_per_second": round(runtime.plan.steps_per_update / median["train"]),
        "mctx": mctx.__version__,
    }


def main() -> None:
    kinds = ("gumbel", "puct")
    parser = common.parser(__doc__, kinds)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one timed call takes")
    parser.add_argument("--rounds", type=int, default=7)
    options = common.parse(parser, kinds)
    for kind in options.cases:
        sizes = (options.batch, options.simulations, options.width)
        common.emit("search", **measure(kind, *sizes, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
