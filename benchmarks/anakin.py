"""Speed of Anakin: agent steps/s against batch, and the share of its bare parts that the whole program reaches.

    python benchmarks/anakin.py [batch peer] [--agent impala] [--env gymnax/CartPole-v1] [--num-envs 64 256] [--set k=v ...]

Prints one JSON line a case; where none is named, of `batch` alone. The bare parts, each a compiled loop of its own over the
same batch and unroll: stepping the environments with given actions; the forward pass and sampling of acting; one learning step
(forward, backward, optimizer) on a fixed batch. `share` is the sum of their times over the whole program's time: 1 means that
the runtime costs nothing. Whole and parts take turns within each round; figures are medians over rounds.

`peer`, with `--peer-python` and `--purejaxrl` (a checkout's `purejaxrl` folder), runs PureJaxRL's PPO on the same work
(CartPole-v1, unroll 16, separate 64x64 tanh networks, one epoch, one minibatch), in its own process and in turn with ours.
"""

import json
import resource
import statistics
import subprocess
import time
from typing import Any

import common
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from podracer import config, rng
from podracer.launch import job as jobs
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.learner import AXIS
from podracer.types import Mode

PEER = """
import json, sys, time, unittest.mock
sys.path.insert(0, sys.argv[1])
sys.modules["navix"] = unittest.mock.MagicMock()  # of another suite; it does not import with this jax
import jax, ppo
updates, envs = int(sys.argv[3]), int(sys.argv[2])
settings = dict(LR=2.5e-4, NUM_ENVS=envs, NUM_STEPS=16, TOTAL_TIMESTEPS=envs * 16 * updates, UPDATE_EPOCHS=1, NUM_MINIBATCHES=1,
    GAMMA=0.99, GAE_LAMBDA=0.95, CLIP_EPS=0.2, ENT_COEF=0.01, VF_COEF=0.5, MAX_GRAD_NORM=0.5, ACTIVATION="tanh",
    ENV_NAME="CartPole-v1", ANNEAL_LR=False, DEBUG=False)
train = jax.jit(ppo.make_train(settings)).lower(jax.random.PRNGKey(0)).compile()
rates = []
for seed in range(int(sys.argv[4])):
    start = time.perf_counter()
    jax.block_until_ready(train(jax.random.PRNGKey(seed)))
    rates.append(envs * 16 * updates / (time.perf_counter() - start))
print(json.dumps(rates))
"""
SAME_WORK = {"agent.unroll_length": 16, "agent.torso.activation": "tanh", "agent.separate_value": True}


def build(agent: str, env: str, num_envs: int, settings: list[str]) -> Anakin:
    """The runtime of a case, from the same job that the command line would make."""
    request = jobs.Request(runtime="anakin", agent=agent, env=env, settings=settings)
    job, _ = jobs.new_job(request)
    job = config.override(job, {"anakin.num_envs": num_envs})
    parts = jobs.build(job)
    return Anakin(parts.agent, parts.environment, parts.plan)


def parts_of(runtime: Anakin) -> dict[str, Any]:
    """Compiled loops over `n` updates' worth of each bare part: name to a function of `n` that blocks until done."""
    agent, environment, plan = runtime.agent, runtime.environment, runtime.plan
    state = runtime.init()
    state, trajectory, _ = jax.jit(runtime._collect)(state)
    keys = rng.columns(state.key, state.env_index)
    params = agent.actor_params(state.train_state)
    specs = P()

    def anew(i: jax.Array) -> Any:
        """What acting and environments are given at update `i`; a program that computes it once for all is no measure."""
        return jax.lax.optimization_barrier(
            (params, trajectory, rng.columns(jax.random.fold_in(state.key, i), state.env_index), i)
        )[:3]

    def step_environments(n: jax.Array) -> Any:
        def update(i: jax.Array, carry: Any) -> Any:
            _, unroll, keys = anew(i)

            def step(carry: Any, t: jax.Array) -> Any:
                action = jax.tree.map(lambda x: x[t], unroll.actor_output.action)
                return environment.step(carry[0], action, rng.at(keys, t)), None

            return jax.lax.scan(step, carry, jnp.arange(plan.unroll_length))[0]

        return jax.lax.fori_loop(0, n, update, (state.env_state, state.timestep))

    def act(n: jax.Array) -> Any:
        def update(i: jax.Array, carry: Any) -> Any:
            params, unroll, keys = anew(i)

            def step(carry: Any, t: jax.Array) -> Any:
                timestep = jax.tree.map(lambda x: x[t], unroll.timestep)
                output, carry = agent.act(params, carry, timestep, rng.at(keys, t), Mode.TRAIN)
                return carry, output

            return jax.lax.scan(step, carry[0], jnp.arange(plan.unroll_length))

        first = update(jnp.int32(0), (state.actor_state, None))
        return jax.lax.fori_loop(1, n, update, first)

    def learn(n: jax.Array) -> Any:
        def update(_: jax.Array, train_state: Any) -> Any:
            return agent.update(train_state, trajectory, keys, AXIS)[0]

        loop = lambda n: jax.lax.fori_loop(0, n, update, state.train_state)  # noqa: E731
        return jax.shard_map(loop, mesh=runtime.mesh, in_specs=specs, out_specs=specs, check_vma=False)(n)

    def timed(function: Any) -> Any:
        compiled = jax.jit(function)
        return lambda n: jax.block_until_ready(compiled(jnp.int32(n)))

    return {"environment": timed(step_environments), "act": timed(act), "learn": timed(learn)}


def measure(agent: str, env: str, num_envs: int, settings: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """One case."""
    runtime = build(agent, env, num_envs, settings)
    if runtime.plan.replay_per_env:
        raise SystemExit("the bare parts are those of an on-policy agent: set agent.replay_share=0")
    start = time.perf_counter()
    state, _ = runtime.run(runtime.init(), 1)
    compile_seconds = time.perf_counter() - start
    holder = [state]

    def whole(n: int) -> None:
        holder[0], _ = runtime.run(holder[0], n)

    times = common.take_turns({"whole": whole, **parts_of(runtime)}, seconds, rounds)
    median = common.medians(times)
    bare = [sum(values[i] for name, values in times.items() if name != "whole") / times["whole"][i] for i in range(rounds)]
    slots = runtime.plan.steps_per_update
    return {
        "agent": agent,
        "env": env,
        "settings": settings,
        "num_envs": num_envs,
        "unroll_length": runtime.plan.unroll_length,
        "agent_steps_per_second": round(slots / median["whole"]),
        "agent_steps_per_second_best": round(slots / min(times["whole"])),
        "share": statistics.median(bare),
        **{f"{name}_us_per_step": 1e6 * value / slots for name, value in median.items()},
        "compile_seconds": compile_seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def against_peer(python: str, folder: str, num_envs: int, rounds: int) -> dict[str, Any]:
    """PureJaxRL's PPO and `impala` in turn, each round one process of theirs and one timed call of ours."""
    runtime = build("impala", "gymnax/CartPole-v1", num_envs, [f"{key}={value}" for key, value in SAME_WORK.items()])
    state, _ = runtime.run(runtime.init(), 1)
    ours, theirs = [], []
    for _ in range(rounds):
        command = [python, "-W", "ignore", "-c", PEER, folder, str(num_envs), "60", "3"]
        rates = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        theirs.append(statistics.median(rates))
        mine = []
        for _ in range(3):
            start = time.perf_counter()
            state, _ = runtime.run(state, 60)
            mine.append(60 * runtime.plan.steps_per_update / (time.perf_counter() - start))
        ours.append(statistics.median(mine))
    return {
        "case": "gymnax/CartPole-v1",
        "num_envs": num_envs,
        "unroll_length": 16,
        "agent_steps_per_second": round(statistics.median(ours)),
        "peer_agent_steps_per_second": round(statistics.median(theirs)),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def main() -> None:
    parser = common.parser(__doc__, ("batch", "peer"))
    parser.add_argument("--agent", default="impala")
    parser.add_argument("--env", default="gymnax/CartPole-v1")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long one timed call takes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--purejaxrl", metavar="DIR")
    parser.add_argument("--peer-python", metavar="PYTHON")
    options = common.parse(parser, ("batch",))
    if "peer" in options.cases and not (options.purejaxrl and options.peer_python):
        parser.error("peer needs --purejaxrl and --peer-python")
    if "batch" in options.cases:
        for num_envs in options.num_envs:
            common.emit(
                "anakin", **measure(options.agent, options.env, num_envs, options.settings, options.seconds, options.rounds)
            )
    if "peer" in options.cases:
        found = against_peer(options.peer_python, options.purejaxrl, 1024, options.rounds)
        common.emit("anakin against PureJaxRL PPO", **found)


if __name__ == "__main__":
    main()
