"""`atari/<game>` with `env.backend=ale`: ale-py's own vector environment, a pool of C++ threads, as a `HostEnvironment`.

What ale-py 0.12 does, and what is made of it here (`tests/envs/test_ale_host.py` holds both to it):

* A game that is over is reset at the next step, which ignores its action: as in envpool, and our FIRST.
* At its own time limit the newest image is a mixture of old frames: ale-py ends the agent step before it takes the last one.
  Agents bootstrap from that observation, so the limit is counted here instead, and the game reset from outside.
* The last image of a game that is over is such a mixture, too. Nobody bootstraps from it, and it stays.
* `episodic_life` of ale-py starts a new game at each lost life. Ours lets the game go on, after one idle agent step.
* An action that does not exist would leave it waiting for ever. It is refused.
* It fills an observation of a new game up with black images. Here, as in envpool, with the first one.
"""

from typing import Any

import numpy as np

from podracer.envs.envpool_host import EnvpoolHost
from podracer.processes import environment_seed
from podracer.types import EnvironmentSpec

_NEVER = 2**30  # frames


class AleHost(EnvpoolHost):
    """A pool of games, all of which step together. It has no picture in colour, so `render` gives none."""

    def __init__(self, spec: EnvironmentSpec, game: str, config: Any, num_envs: int, seed: int, first_env: int):
        """`config` is that of `atari.py`. Game `first_env + i` has a seed of its own, from `seed` and that number alone."""
        seeds = np.array([environment_seed(seed, first_env + index) for index in range(num_envs)])
        super().__init__(spec, game, {"num_envs": num_envs, "config": config, "seeds": seeds}, first_env)

    def _make(self, env_id: str, options: dict[str, Any]) -> "AlePool":
        return AlePool(env_id, options["config"], options["seeds"])

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        """As in HostEnvironment. Raises ValueError unless it is all games, or for an action that does not exist."""
        action = np.asarray(action)
        if len(env_id) != self.num_envs:
            raise ValueError(
                f"{self.spec.name} steps its {self.num_envs} games together, not {len(env_id)}, with env.backend=ale"
            )
        if action.min() < 0 or action.max() >= self.spec.num_actions:
            raise ValueError(f"{self.spec.name}: actions must be within 0..{self.spec.num_actions - 1}, not {action}")
        super().send(action, env_id)

    def render(self) -> None:
        return None

    def _observe(self, observation: Any, info: dict[str, Any], first: np.ndarray, env_id: np.ndarray) -> np.ndarray:
        return observation.transpose(0, 2, 3, 1)


class AlePool:
    """`B` games with the calls of an asynchronous envpool pool, and with its semantics. `recv` waits in another thread."""

    def __init__(self, game: str, config: Any, seeds: np.ndarray):
        """seeds: `[B]` int, of the first reset; later ones go on with the randomness of the first."""
        from ale_py.vector_env import AtariVectorEnv

        self._pool = AtariVectorEnv(
            game,
            len(seeds),
            num_threads=config.num_threads,
            max_num_frames_per_episode=_NEVER,
            repeat_action_probability=config.repeat_action_probability,
            full_action_space=config.full_action_space,
            img_height=config.image_height,
            img_width=config.image_width,
            grayscale=config.grey,
            stack_num=config.stack,
            frameskip=config.frame_skip,
            noop_max=config.noop_max + 1,  # it draws fewer than that
            use_fire_reset=config.fire_reset,
            reward_clipping=False,
        )
        self._config, self._limit = config, config.max_frames // config.frame_skip
        self._seeds: np.ndarray | None = seeds
        self._resets = False
        self._lives = np.zeros(len(seeds), np.int32)
        self._count = np.zeros(len(seeds), np.int64)  # agent steps of the game
        self._over = np.zeros(len(seeds), bool)  # by the rules of the game
        self._ended = np.zeros(len(seeds), bool)  # the last step ended an episode, for whatever reason

    def async_reset(self) -> None:
        """Begins a reset of all games."""
        self._resets = True

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        """Begins a step of all games. `action` `[B]`, `env_id` `[B]`."""
        in_order = np.zeros(len(self._count), np.int32)
        in_order[env_id] = action
        self._pool.send(np.where(self._ended, 0, in_order))  # 0 is no operation, which matters after a lost life

    def recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Waits for all games: images `[B, C, H, W]`, rewards `[B]`, terminated and truncated `[B]` bool, `env_id` `[B]`."""
        if self._resets:
            images: Any
            images, info = self._pool.reset(seed=self._seeds)
            self._resets, self._seeds = False, None
            reward, over = np.zeros(len(self._count), np.int32), np.zeros(len(self._count), bool)
            fresh = np.ones(len(self._count), bool)
        else:
            images, reward, over, _, info = self._pool.recv()
            # The limit was reached, or the game was over in the idle step after a lost life.
            late = self._ended & ~self._over & ((self._count >= self._limit) | over)
            if late.any():
                new_images: Any
                new_images, new = self._pool.reset(options={"reset_mask": late})
                images[late], over = new_images[late], over & ~late
                info = {name: np.where(late, new[name], value) for name, value in info.items()}
            fresh = self._over | late
        self._count = np.where(fresh, 0, self._count + 1)
        self._fill(images)
        lost = (info["lives"] < self._lives) & ~over & ~fresh & self._config.episodic_life
        terminated, truncated = over | (lost & ~self._ended), self._count >= self._limit
        self._ended = (terminated | truncated) & ~self._ended
        self._lives, self._over = info["lives"], over
        return self._planes(images), reward, terminated, truncated, {"env_id": info["env_id"]}

    def _fill(self, images: np.ndarray) -> None:
        """Puts the first image of a game in the place of those before it."""
        newest = self._config.stack - 1
        for game in np.flatnonzero(self._count < newest):
            first = newest - self._count[game]
            images[game, :first] = images[game, first]

    def _planes(self, images: np.ndarray) -> np.ndarray:
        """`[B, stack, H, W]` stays; `[B, stack, H, W, 3]` becomes `[B, 3 stack, H, W]`."""
        if images.ndim == 4:
            return images
        return np.moveaxis(images, -1, 2).reshape(len(images), -1, *images.shape[2:4])
