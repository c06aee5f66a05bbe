"""Plans: what follows from a configuration, and one line for what cannot be."""

import dataclasses

import pytest

from podracer import config, plan, registry
from podracer.agent import DataSpec
from podracer.agents.impala.agent import Impala

pytestmark = pytest.mark.quick


def make(available=8, replay=None, **fields):
    overrides = {key: fields.pop(key) for key in list(fields) if "." in key}
    job = config.JobConfig(agent_name="impala", env_name="catch", agent=Impala.Config(), env=None, **fields)
    job = config.override(job, overrides)
    agent = Impala(registry.env("catch").make().spec, job.agent)
    if replay:
        agent.data_spec = lambda: replay  # type: ignore[method-assign]
    return plan.make_plan(job, agent, available)


def test_arithmetic():
    replay = DataSpec(unroll_length=10, replay_share=0.75, replay_capacity=6400, microbatch=32)
    made = make(replay=replay, num_steps=100_001, num_devices=4, **{"anakin.num_envs": 64})
    assert made.envs_per_device == 16
    assert (made.batch_size, made.replay_per_env, made.replay_length) == (256, 3, 100)
    assert (made.steps_per_update, made.num_updates) == (640, 157)
    assert made.num_env_slots == 157 * 640 >= 100_001
    assert make(num_devices=0).num_devices == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.num_envs = 1


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"anakin.num_envs": 20, "num_devices": 8}, "does not divide over 8 devices: try 16 or 24"),
        ({"anakin.num_envs": 3, "num_devices": 8}, "try 8"),
        ({"num_devices": 9}, "there are 8; on a CPU, XLA_FLAGS"),
        ({"num_steps": 0}, "--steps must be at least 1"),
        ({"num_seeds": 0}, "--seeds must be at least 1"),
        ({"seed": -1}, "--seed must lie between 0"),
        ({"agent.unroll_length": 0}, "unroll_length must be at least 1"),
        ({"agent.microbatch": 48}, "microbatch=48 does not divide the 64 sequences of a device's learning batch: try 16"),
        ({"anakin.minibatches": 48}, "minibatches=48 does not divide the 64 environments of a device: try 16"),
        ({"replay": DataSpec(unroll_length=5, replay_share=0.7, replay_capacity=999)}, "the nearest are 0.666667 and 0.75"),
        ({"replay": DataSpec(unroll_length=5, replay_share=1.0)}, r"replay_share must lie in \[0, 1\)"),
        ({"replay": DataSpec(unroll_length=5, replay_share=0.5, replay_capacity=63)}, "set agent.replay_capacity to 64"),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(fields, line):
    with pytest.raises(config.ConfigError, match=line) as error:
        make(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "acting", "learning"),
    [
        ({}, 2, 4),
        ({"sebulba.sync": True}, 1, 4),
        ({"anakin.minibatches": 4}, 2, 4),
        ({"anakin.num_envs": 42}, 2, 6),
        ({"anakin.num_envs": 5}, 2, 5),
    ],
)
def test_of_the_devices_that_are_left_as_many_learn_as_divide_the_environments(more, acting, learning):
    made = make(runtime="sebulba", **{"anakin.num_envs": 32, **more})
    assert made.actors.num_devices == acting
    assert (made.num_devices, made.num_envs % made.num_devices) == (learning, 0)
