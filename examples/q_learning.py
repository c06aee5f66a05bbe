"""An agent in one file: Q-learning with replay and a target network. It is trained in both runtimes, unchanged.

    python examples/q_learning.py

From examples/ the command line takes it too: podracer launch anakin --agent q_learning:QLearning --env catch
"""

import dataclasses
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import optax
import rlax

from podracer.agent import Agent, DataSpec
from podracer.ops import episodes
from podracer.types import ActorOutput, Mode


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a setting: --set agent.epsilon=0.2."""

    unroll_length: int = 10
    discount: float = 0.99
    learning_rate: float = 3e-3
    epsilon: float = 0.1
    target_period: int = 20
    replay_share: float = 0.75
    replay_capacity: int = 6400


class QLearning(Agent[Config]):
    """Learns by one-step Q-learning (Mnih et al. 2015) from replayed and fresh unrolls."""

    Config = Config

    def __init__(self, spec, config):
        super().__init__(spec, config)

        def network(observation):  # [N, ...] -> values of actions [N, A]
            return hk.nets.MLP([64, spec.num_actions])(hk.Flatten()(observation))

        self._net = hk.without_apply_rng(hk.transform(network))

    def data_spec(self):
        return DataSpec(self.config.unroll_length, self.config.replay_share, self.config.replay_capacity)

    def init(self, key):
        params = self._net.init(key, self.spec.example((1,)).observation)
        return self.train_state(params, target_params=params)

    def act(self, params, actor_state, timestep, key, mode):
        policy = rlax.epsilon_greedy(0.0 if mode is Mode.EVALUATE else self.config.epsilon)
        q = self._net.apply(params, timestep.observation)
        action = jax.vmap(policy.sample)(key, q)  # one key a column
        return ActorOutput(action=action, log_prob=jax.vmap(policy.logprob)(action, q)), actor_state

    def loss(self, params, train_state, trajectory, key):
        network = jax.vmap(self._net.apply, in_axes=(None, 0))  # over time
        q = network(params, trajectory.timestep.observation)  # [T+1, B, A]
        q_target = network(train_state.target_params, trajectory.timestep.observation)
        step = episodes.transitions(trajectory.timestep, self.config.discount)  # knows where episodes end
        q_a = jnp.take_along_axis(q[:-1], trajectory.actor_output.action[..., None], axis=-1)[..., 0]
        error = step.r_t + step.discount_t * jnp.max(q_target[1:], axis=-1) - q_a
        loss = episodes.masked_mean(rlax.l2_loss(error), step.mask_tm1)
        return loss, {"loss": loss, "q": jnp.mean(q)}

    def update_target(self, params, target_params, num_updates):
        return optax.periodic_update(params, target_params, num_updates, self.config.target_period)


def main() -> None:
    from podracer.launch.job import Request, new_job
    from podracer.launch.train import train

    for runtime in ("anakin", "sebulba"):
        job, _ = new_job(Request(runtime, agent="q_learning:QLearning", env="catch", steps=200_000))
        train(job, "", Path("runs") / f"q_learning-{runtime}")


if __name__ == "__main__":
    main()
