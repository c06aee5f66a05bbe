"""Speed of Sebulba: agent steps/s against actor batch, threads and lag, and the share of its bare parts that it reaches.

    python benchmarks/sebulba.py [batch threads lag pixels peer] [--env gymnasium/CartPole-v1] [--set key=value ...]

Prints one JSON line a case. `batch`, `threads` and `lag` vary `anakin.num_envs`, `sebulba.threads` and `sebulba.max_lag` one at
a time (lag 0 is `sebulba.sync`, in turns); `pixels` is IMPALA with the Nature CNN on `atari/pong`, 32 environments, unroll 20.
The bare parts, each alone on the same cores and over the same batch and unroll: stepping the environments of one actor with
given actions; acting on a given time step; one update on a given unroll. `share` is the sum of their times over the time of
the whole. Where each part keeps all cores busy, 1 means that threads, queues and transfers cost nothing; parts that leave cores
idle can overlap, and the share exceed 1. Whole and parts take turns within each round, while the actors wait; figures are
medians over rounds. On a machine that others use, `cpu_us_per_step` says more than the rate: CPU time of this process, without
environments in processes of their own.

`peer`, with `--peer PYTHON`, runs Sample Factory's own command on the work of `pixels` (APPO, which learns from each step
once, as here) in turn with ours: PYTHON is that of an environment with sample-factory 2.1.1, where `PongNoFrameskip-v4` is
registered.
"""

import os
import re
import resource
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from podracer.launch import surroundings

surroundings.prepare()

import common  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402

from podracer import config, rng  # noqa: E402
from podracer.launch import job as jobs  # noqa: E402
from podracer.runtimes.sebulba.actor import Acting  # noqa: E402
from podracer.runtimes.sebulba.runtime import Sebulba, SebulbaState  # noqa: E402

PIXELS = (
    "agent.torso.kind=nature",
    "agent.torso.hidden=(512,)",
    "agent.unroll_length=20",
    "agent.microbatch=4",
    "env.full_action_space=False",
    "env.repeat_action_probability=0.0",
    "anakin.num_envs=32",
)
PEER = """
    -m sf_examples.atari.train_atari --algo=APPO --env=atari_pong --experiment=peer --device=cpu --seed=1
    --num_workers=2 --num_envs_per_worker=16 --worker_num_splits=2 --rollout=20 --batch_size=640 --num_batches_per_epoch=1
    --num_epochs=1 --use_rnn=False --encoder_conv_architecture=convnet_atari --encoder_conv_mlp_layers 512
    --summaries_use_frameskip=False --decorrelate_experience_max_seconds=0 --save_every_sec=100000
"""


class Whole:
    """The runtime, with actors that wait whenever it does not run."""

    def __init__(self, agent: str, env: str, settings: list[str]):
        job, _ = jobs.new_job(jobs.Request(runtime="sebulba", agent=agent, env=env, settings=settings))
        self.job: config.JobConfig = job
        parts = jobs.build(job)
        self.runtime = Sebulba(parts.agent, parts.environment, parts.plan)
        self.state: SebulbaState = self.runtime.init()
        start = time.perf_counter()
        self.run(2)
        self.compile_seconds = time.perf_counter() - start

    def run(self, num_updates: int) -> float:
        """Agent steps/s of `num_updates` updates, without the unrolls that wait already, and one more of each actor."""
        actors = self.runtime.plan.actors
        assert actors is not None
        self.state, _ = self.runtime.run(self.state, actors.max_lag + 1 + actors.num_devices * actors.threads)
        start, cpu_start = time.perf_counter(), time.process_time()
        self.state, self.metrics = self.runtime.run(self.state, num_updates)
        num_steps = float(self.metrics["agent_steps"][0])
        self.cpu_us_per_step = 1e6 * (time.process_time() - cpu_start) / num_steps
        return num_steps / (time.perf_counter() - start)

    def rest(self) -> None:
        """Waits until no actor acts any more."""
        assert self.runtime.plan.actors is not None
        while len(self.runtime._handover) <= self.runtime.plan.actors.max_lag:
            time.sleep(0.01)


def parts_of(whole: Whole) -> tuple[dict[str, Callable[[], Any]], Callable[[], None]]:
    """Each bare part for one update's worth of steps, by name, and what ends them."""
    runtime, plan = whole.runtime, whole.runtime.plan
    acting = Acting(runtime.agent)
    environment = runtime.environment.host(plan.num_envs, seed=plan.seed)
    key = rng.columns(jax.random.key(0), jnp.arange(plan.num_envs))
    timestep = environment.reset(60.0)
    params = jax.tree.map(np.array, runtime.actor_params(whole.state))
    params = jax.device_put(params, runtime.actor_devices[0])
    key, actor_state = jax.device_put((key, runtime.agent.initial_actor_state(plan.num_envs)), runtime.actor_devices[0])
    actions: list[np.ndarray] = []

    def act() -> Any:
        unroll, carry = acting.begin(params, actor_state, timestep, key), actor_state
        actions.clear()
        for t in range(plan.unroll_length):
            action, carry, unroll = acting.step(params, carry, unroll, timestep, key, np.int32(t))
            actions.append(np.asarray(action))
        return jax.block_until_ready(acting.finish(unroll, timestep, np.int32(0)))

    trajectory = runtime._deliver(act())
    given = list(actions)
    state = jax.tree.map(jnp.copy, whole.state)

    def step() -> None:
        for action in given:
            environment.step(action, 60.0)

    def learn() -> None:
        nonlocal state
        state, *_ = runtime._program(state, trajectory, None)
        jax.block_until_ready(state.num_updates)

    return {"environment": step, "act": act, "learn": learn}, environment.close


def measure(agent: str, env: str, settings: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """One case."""
    whole = Whole(agent, env, settings)
    plan = whole.runtime.plan
    assert plan.actors is not None
    if plan.replay_per_env:
        raise SystemExit("the bare parts are those of an on-policy agent: set agent.replay_share=0")
    whole.rest()
    parts, end = parts_of(whole)
    slots = plan.steps_per_update
    rates: list[float] = []
    cpu: list[float] = []
    microseconds: dict[str, list[float]] = {name: [] for name in parts}
    shares = []
    for name in parts:
        parts[name]()
    count = max(2, round(seconds * whole.run(2) / slots))
    for _ in range(rounds):
        rates.append(whole.run(count))
        cpu.append(whole.cpu_us_per_step)
        metrics = whole.metrics
        whole.rest()
        for name, part in parts.items():
            start = time.perf_counter()
            done = 0
            while not done or time.perf_counter() - start < seconds / 3:
                part()
                done += 1
            microseconds[name].append(1e6 * (time.perf_counter() - start) / done / slots)
        shares.append(sum(values[-1] for values in microseconds.values()) * rates[-1] / 1e6)
    end()
    whole.runtime.close()
    return {
        "agent": agent,
        "env": env,
        "settings": settings,
        "num_envs": plan.num_envs,
        "unroll_length": plan.unroll_length,
        "threads": plan.actors.threads,
        "max_lag": plan.actors.max_lag,
        "agent_steps_per_second": round(statistics.median(rates)),
        "agent_steps_per_second_best": round(max(rates)),
        "frames_per_second": round(statistics.median(rates) * whole.runtime.environment.spec.frames_per_step),
        "share": statistics.median(shares),
        "cpu_us_per_step": statistics.median(cpu),
        "whole_us_per_step": 1e6 / statistics.median(rates),
        **{f"{name}_us_per_step": statistics.median(values) for name, values in microseconds.items()},
        **{
            name: float(metrics[name][0])
            for name in sorted(metrics)
            if name.startswith(("actor_", "learner_", "lag")) and np.size(metrics[name]) == 1
        },
        "stale": int(metrics["stale"][0]),
        "compile_seconds": whole.compile_seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def peer_rate(python: str, seconds: float) -> tuple[float, float]:
    """Agent steps/s of Sample Factory over `seconds`, from its second report on, and CPU time of a step in microseconds."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        command = [python, *PEER.split(), f"--train_dir={folder}"]
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        peer = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True)

        def reported() -> list[int]:
            log.seek(0)
            return [int(num) for num in re.findall(r"Total num frames: (\d+)", log.read())]

        def next_report() -> tuple[int, float, float]:
            """Steps so far as soon as a report says so, wall and CPU seconds."""
            num, deadline = len(reported()), time.monotonic() + 120
            while len(reports := reported()) == num:
                if peer.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"the peer reports nothing; the end of what it said:\n{log.read()[-2000:]}")
                time.sleep(0.1)
            times = [process.cpu_times() for process in (peer, *peer.children(recursive=True))]
            return reports[-1], time.monotonic(), sum(t.user + t.system for t in times)

        try:
            while next_report()[0] < 3 * 640:
                pass
            first = last = next_report()
            while last[1] - first[1] < seconds:
                last = next_report()
        finally:
            os.killpg(peer.pid, signal.SIGKILL)
            peer.wait()
    steps, wall, cpu = (b - a for a, b in zip(first, last, strict=True))
    return steps / wall, 1e6 * cpu / steps


def against_peer(python: str, settings: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """`pixels` and Sample Factory in turn."""
    whole = Whole("impala", "atari/pong", [*PIXELS, *settings])
    count = max(2, round(seconds * whole.run(2) / whole.runtime.plan.steps_per_update))
    pairs = []
    for _ in range(rounds):
        whole.rest()
        its_rate, its_cpu = peer_rate(python, seconds)
        pairs.append((whole.run(count), its_rate, whole.cpu_us_per_step, its_cpu))
    whole.runtime.close()
    rate, its_rate, cpu, its_cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "case": "atari/pong, Nature CNN, 32 environments, unroll 20",
        "settings": settings,
        "agent_steps_per_second": round(rate),
        "peer_agent_steps_per_second": round(its_rate),
        "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
        "cpu_us_per_step": round(cpu),
        "peer_cpu_us_per_step": round(its_cpu),
        "cpu_ratio": statistics.median(pair[3] / pair[2] for pair in pairs),
        "rounds": rounds,
    }


def cases(names: list[str], env: str, settings: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Environment and settings of each case; the user's settings win."""
    vary = {
        "batch": [["sebulba.sync=False", f"anakin.num_envs={num}"] for num in (8, 32, 128)],
        "threads": [["sebulba.sync=False", f"sebulba.threads={num}"] for num in (1, 2, 4)],
        "lag": [["sebulba.sync=True"], *(["sebulba.sync=False", f"sebulba.max_lag={num}"] for num in (1, 2, 4, 8))],
    }
    for name in names:
        for more in [[]] if name == "pixels" else vary[name]:
            yield ("atari/pong", [*PIXELS, *more, *settings]) if name == "pixels" else (env, [*more, *settings])


def main() -> None:
    names = ("batch", "threads", "lag", "pixels")
    parser = common.parser(__doc__, (*names, "peer"))
    parser.add_argument("--agent", default="impala")
    parser.add_argument("--env", default="gymnasium/CartPole-v1", help="of batch, threads and lag")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long the whole runs within one round, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment that has Sample Factory")
    parser.add_argument("--peer-seconds", type=float, default=60.0, help="how long either runs within one round")
    options = common.parse(parser, names)
    if "peer" in options.cases and not options.peer:
        parser.error("peer needs --peer PYTHON")
    own = [name for name in options.cases if name != "peer"]
    for env, settings in cases(own, options.env, options.settings):
        common.emit("sebulba", **measure(options.agent, env, settings, options.seconds, options.rounds))
    if "peer" in options.cases:
        found = against_peer(options.peer, options.settings, options.peer_seconds, options.rounds)
        common.emit("sebulba against Sample Factory APPO", **found)


if __name__ == "__main__":
    main()
