"""Costs of programs: exact where there is an exact answer, loops times their length, and what crosses devices to the byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from podracer import config, plan, registry
from podracer.agent import PRIORITY, DataSpec
from podracer.agents.impala.agent import Impala
from podracer.aot import compiled, cost, target
from podracer.nets.torso import Conv
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.sebulba.runtime import Sebulba

pytestmark = pytest.mark.quick


def counted(function, *shapes, choose=cost.dearest):
    return cost.count(jax.make_jaxpr(function)(*[jnp.zeros(shape) for shape in shapes]), choose)


def test_matrix_products_in_loops_of_known_length():
    def function(x, w):
        def inner(x, _):
            return x @ w, jnp.sum(x)

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=5)

        return jax.lax.scan(outer, x @ w, None, length=3)

    found = counted(function, (7, 4), (4, 4))
    assert found.matmul_flops == {"float32": 2 * 7 * 4 * 4 * (1 + 3 * 5)}
    assert found.rounds == 15
    assert found.other_ops == 7 * 4 * 15
    # Operands and result of every product, and the sums that the inner loop writes out, and the outer one.
    assert found.num_bytes == 4 * ((2 * 7 * 4 + 4 * 4) * 16 + 15 + 15)
    assert found.num_bytes < found.num_bytes_unfused


def test_batched_product_of_low_precision():
    found = cost.count(
        jax.make_jaxpr(lambda x, y: jnp.einsum("bij,bjk->bik", x, y))(
            jnp.zeros((3, 4, 5), jnp.bfloat16), jnp.zeros((3, 5, 6), jnp.bfloat16)
        )
    )
    assert found.matmul_flops == {"bfloat16": 2 * 3 * 4 * 5 * 6}
    precise = counted(lambda x: jnp.dot(x, x, precision="highest"), (4, 4))
    assert precise.matmul_flops == {"float32:highest": 2 * 4**3}


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID"), (3, "SAME")])
def test_convolutions_and_their_gradients_are_as_xla_counts_them(stride, padding):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jnp.zeros((2, 9, 11, 3)), jnp.zeros((3, 3, 3, 5))
    y = convolve(x, w)
    for function in (
        lambda x, w, y: convolve(x, w),
        lambda x, w, y: jax.vjp(lambda x: convolve(x, w), x)[1](y),
        lambda x, w, y: jax.vjp(lambda w: convolve(x, w), w)[1](y),
    ):
        found = cost.count(jax.make_jaxpr(function)(x, w, y))
        assert found.flops == jax.jit(function).lower(x, w, y).cost_analysis()["flops"]


def test_what_nothing_depends_on_costs_nothing():
    def function(x):
        unused = jax.lax.scan(lambda x, _: (x @ x, x @ x @ x), x, None, length=3)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: (x @ x @ x, x @ x)[1], unused[0])

    assert counted(function, (4, 4)).flops == (3 + 1) * 2 * 4**3


def test_branches_and_loops_that_depend_on_data():
    def function(x):
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    product = 2 * 4**3
    assert counted(function, (4, 4)).flops == 3 * product
    assert counted(function, (4, 4), choose=cost.cheapest).flops == product
    assert counted(function, (4, 4)).opaque == {"loop of unknown length": 1.0}


def test_the_loop_of_a_program_and_what_a_call_adds():
    def program(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x @ x, x) @ x

    call, each = cost.count_loop(jax.make_jaxpr(program)(jnp.zeros((4, 4)), 3))
    assert (call.flops, each.flops) == (2 * 4**3, 4 * 4**3)
    with pytest.raises(ValueError, match="not of 0"):
        cost.count_loop(jax.make_jaxpr(lambda x: x @ x)(jnp.zeros((4, 4))))


def test_calls_out_of_xla_are_named():
    def function(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    assert counted(function, (3,)).opaque == {"pure_callback": 1.0}


@pytest.mark.parametrize("num_devices", [1, 4])
def test_collectives_of_a_loop(num_devices):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("d",), axis_types=(AxisType.Auto,))

    def body(x, _):
        x, total = jax.lax.pmean((x, x[0]), "d")
        return x + total, None

    shards = jax.shard_map(
        lambda x: jax.lax.scan(body, x, None, length=6)[0], mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
    )
    traced = jax.jit(shards).trace(jnp.zeros((num_devices * 3, 5)))
    found = cost.count(traced.jaxpr)
    assert cost.num_devices(traced.jaxpr) == num_devices
    assert found.num_collectives == (12 if num_devices > 1 else 0)
    assert found.collective_bytes == (6 * 4 * (3 * 5 + 5) if num_devices > 1 else 0)


def anakin(num_devices, **overrides):
    env = registry.env("catch")
    job = config.JobConfig(
        agent_name="impala", env_name="catch", agent=Impala.Config(), env=env.suite.config(), num_devices=num_devices
    )
    small = {"agent.unroll_length": 5, "agent.torso.hidden": (16,), "agent.core.size": 8}
    job = config.override(job, {**small, "anakin.num_envs": 8 * num_devices, **overrides})
    environment = env.make(job.env)
    learner = Impala(environment.spec, job.agent)
    return Anakin(learner, environment, plan.make_plan(job, learner, len(jax.devices())))


@pytest.fixture(scope="module")
def four():
    runtime = anakin(4, **{"anakin.minibatches": 2})
    return runtime, runtime.trace()["updates"]


def test_what_is_planned_is_what_runs(four):
    runtime, traced = four
    running = runtime._program.lower(runtime.init(), np.int32(1))
    assert traced.lower().as_text() == running.as_text()


def test_an_update_reduces_its_gradients_and_no_more(four):
    runtime, traced = four
    params = jax.eval_shape(runtime.init).train_state.params
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    call, update = cost.count_loop(traced.jaxpr)
    assert update.collective_bytes == 2 * gradients
    assert update.num_collectives == 2 * len(jax.tree.leaves(params))
    assert call.collective_bytes > 0
    messages = compiled.compile_traced(traced).messages
    # The minibatches are a loop within the loop over updates; what checks for drift is in neither.
    assert sum(one.num_bytes for one in messages if one.depth == 2) == gradients
    assert sum(one.num_bytes for one in messages if one.depth == 0) == call.collective_bytes
    assert not [one for one in messages if one.depth not in (0, 2)]


def test_a_device_does_the_same_on_any_number_of_them(four):
    _, one = cost.count_loop(anakin(1, **{"anakin.minibatches": 2}).trace()["updates"].jaxpr)
    _, many = cost.count_loop(four[1].jaxpr)
    assert one.matmul_flops == many.matmul_flops
    assert one.num_collectives == 0


def test_memory_is_that_of_the_arrays_and_more(four):
    runtime, traced = four
    found, arrays = compiled.compile_traced(traced), runtime.memory()
    state = arrays["learner"] + arrays["environments"] + arrays["replay"]
    assert state <= found.arguments <= state + 8 * runtime.plan.envs_per_device + 64
    assert found.num_bytes > found.arguments


def test_programs_are_traced_for_the_platform_that_is_assumed():
    import haiku as hk

    transformed = hk.without_apply_rng(hk.transform(lambda x: Conv(4, 3)(x)))
    x = jnp.zeros((1, 8, 8, 2))
    params = transformed.init(jax.random.key(0), x)

    def primitives():
        traced = jax.make_jaxpr(lambda *arguments: transformed.apply(*arguments))(params, x)
        return {eqn.primitive.name for eqn in traced.eqns}

    assert "conv_general_dilated" not in primitives()
    with target.assume("tpu"):
        assert "conv_general_dilated" in primitives()
    assert target.platform() == "cpu"


class Prioritized(Impala):
    """With all that a replay outside the learner needs."""

    def data_spec(self):
        return DataSpec(self.config.unroll_length, replay_share=2 / 3, replay_capacity=64, priority_exponent=0.5)

    def loss(self, params, train_state, trajectory, key):
        loss, metrics = super().loss(params, train_state, trajectory, key)
        return loss, {**metrics, PRIORITY: trajectory.importance}


@pytest.mark.parametrize(("agent_class", "store"), [(Impala, "queue"), (Prioritized, "queue"), (Prioritized, "reverb")])
def test_the_programs_of_sebulba(agent_class, store):
    env = registry.env("catch")
    job = config.JobConfig(
        agent_name="impala", env_name="catch", agent=Impala.Config(), env=env.suite.config(), runtime="sebulba"
    )
    small = {"agent.unroll_length": 5, "agent.torso.hidden": (16,), "agent.core.size": 8, "anakin.num_envs": 8}
    devices = {"sebulba.actor_devices": 1, "sebulba.learner_devices": 2, "sebulba.store": store}
    job = config.override(job, {**small, **devices})
    environment = env.make(job.env)
    agent = agent_class(environment.spec, job.agent)
    runtime = Sebulba(agent, environment, plan.make_plan(job, agent, 3))
    try:
        params = jax.tree.leaves(jax.eval_shape(runtime.init).train_state.params)
        traced = runtime.trace()
    finally:
        runtime.close()
    update, act = (cost.count(traced[name].jaxpr) for name in ("update", "act"))
    assert (cost.num_devices(traced["update"].jaxpr), cost.num_devices(traced["act"].jaxpr)) == (2, 1)
    gradients = sum(x.size * x.dtype.itemsize for x in params)
    assert 0 < update.collective_bytes - gradients < 4 * 20  # metrics, scalars
    assert act.num_collectives == 0
    assert 0 < act.flops < update.flops
    for one in traced.values():
        assert compiled.compile_traced(one).num_bytes > 0
