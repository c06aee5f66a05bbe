"""`atari/<game>`: the Arcade Learning Environment itself, stepped from Python or inside an XLA program on a CPU host.

The emulator runs in envpool's thread pool, which Python calls (`AtariHost`), or XLA from within jit and `lax.scan`
(`AtariVector`). envpool was taken over ale-py's own vector environment because it also hands out the RAM and a picture in
colour, and marks a game that ends exactly at the time limit. On the host, `env.backend=ale` takes the latter all the same
(`ale_host.py`): a second implementation of the protocol, to compare with, at about the same speed.

Defaults are the protocol of the Muesli paper (Hessel et al. 2021, appendix): sticky actions with probability 0.25, all 18
actions, no signal for lost lives, at most 108,000 frames an episode, no random no-ops, frame skip 4 with the brighter of the
last two frames, and 4 grey images of 84x84 pixels. Rewards are not clipped.

What of it is particular to envpool: an episode starts after one idle frame even with `noop_max=0`; the last image of a game
that ends within an agent step is not pooled.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs
from jax.experimental import io_callback

from podracer import types
from podracer.config import require
from podracer.environment import Environment, Unsupported, VectorEnvironment
from podracer.envs.envpool_host import EnvpoolHost, arrive
from podracer.registry import Suite
from podracer.types import Array, EnvironmentSpec, Key, Struct, TimeStep


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `atari/<game>`.

    observation: `pixels`, `[image_height, image_width, stack]` uint8, newest image last (3 channels an image with grey=False);
      `ram`, `[128]` uint8; or `objects` (Pong only), `[9]` float32, as in `atari_jax/pong`.
    repeat_action_probability: on each frame, the chance that the previous frame's action is used once more (sticky actions).
    full_action_space: all 18 actions, or those that the game uses.
    frame_skip: frames of an agent step. Pixels are the brighter of its last two frames.
    stack: images in an observation.
    episodic_life: a lost life ends the episode (discount 0), and the next one goes on with the game.
    noop_max: an episode starts after 1 to `noop_max` idle frames, at random (1 for 0).
    fire_reset: press FIRE once after a reset, in games that have it.
    grey: grey images, not red, green and blue.
    image_height, image_width: size of the image.
    max_frames: time limit of a game in frames.
    num_threads: threads of the emulator; 0 is one per core.
    batch_size: on the host, how many games `recv` waits for; 0 is all.
    backend: `envpool`, or `ale`, ale-py's own vector environment: on the host, pixels alone, all games in step; an episode
      starts after 0 to `noop_max` idle frames.
    """

    observation: Literal["pixels", "ram", "objects"] = "pixels"
    repeat_action_probability: float = 0.25
    full_action_space: bool = True
    frame_skip: int = 4
    stack: int = 4
    episodic_life: bool = False
    noop_max: int = 0
    fire_reset: bool = False
    grey: bool = True
    image_height: int = 84
    image_width: int = 84
    max_frames: int = 108_000
    num_threads: int = 0
    batch_size: int = 0
    backend: Literal["envpool", "ale"] = "envpool"

    def __post_init__(self) -> None:
        require(self, "repeat_action_probability", at_least=0, at_most=1)
        require(self, "frame_skip", "stack", "image_height", "image_width", at_least=1)
        require(self, "noop_max", "num_threads", "batch_size", at_least=0)
        require(self, "max_frames", at_least=self.frame_skip)


def tasks() -> Sequence[str]:
    """Games whose ROM is installed, sorted. Imports nothing."""
    override = os.environ.get("ENVPOOL_ASSETS_PATH")
    package = importlib.util.find_spec("envpool_assets")
    root = override or (str(Path(package.origin).parent) if package and package.origin else "")
    return tuple(sorted(path.stem for path in Path(root, "atari", "roms").glob("*.bin"))) if root else ()


def pool_options(config: Config, num_envs: int, seed: int) -> dict[str, Any]:
    """Keyword arguments of `envpool.make` for `num_envs` games. `seed` is any integer; it is folded into 31 bits."""
    pixels = config.observation == "pixels"
    return {
        "env_type": "gymnasium",
        "num_envs": num_envs,
        "seed": seed % 2**31,
        "num_threads": config.num_threads,
        "max_episode_steps": config.max_frames // config.frame_skip,
        "stack_num": config.stack if pixels else 1,
        "frame_skip": config.frame_skip,
        "noop_max": max(config.noop_max, 1),
        "use_fire_reset": config.fire_reset,
        "episodic_life": config.episodic_life,
        "reward_clip": False,
        "img_height": config.image_height if pixels else 8,  # nobody looks at it: make it cheap
        "img_width": config.image_width if pixels else 8,
        "full_action_space": config.full_action_space,
        "repeat_action_probability": config.repeat_action_probability,
        "gray_scale": config.grey,
        "render_mode": "rgb_array",
    }


class Atari(Environment):
    """One game of the ALE. Raises Unsupported for `objects` of a game other than Pong, and for what `backend=ale` lacks."""

    def __init__(self, game: str, config: Config):
        if config.observation == "objects" and game != "pong":
            raise Unsupported(f"atari/{game} has no observation=objects, only atari/pong has; use pixels or ram")
        if config.backend == "ale" and (config.observation != "pixels" or config.batch_size):
            raise Unsupported(f"atari/{game}: env.backend=ale has pixels alone, and no env.batch_size: use env.backend=envpool")
        self.game, self.config = game, config
        self.spec = EnvironmentSpec(
            name=f"atari/{game}",
            observation=_observation_spec(config),
            action=specs.DiscreteArray(18 if config.full_action_space else _num_minimal_actions(self.env_id), name="action"),
            frames_per_step=config.frame_skip,
        )

    @property
    def env_id(self) -> str:
        """The game's name in envpool."""
        return "".join(word.capitalize() for word in self.game.split("_")) + "-v5"

    def vectorize(self, num_envs: int, seed: int = 0) -> "AtariVector":
        """`num_envs` games in one pool. The stream of a pool is a function of `seed` and the actions alone.

        Raises:
          Unsupported: JAX's default backend is not the CPU, or the emulator's is ale-py's.
        """
        if self.config.backend == "ale":
            raise Unsupported(
                f"{self.spec.name}: env.backend=ale runs on the host: use podracer launch sebulba, or env.backend=envpool"
            )
        backend = jax.default_backend()
        if backend != "cpu":
            raise Unsupported(
                f"{self.spec.name} cannot run inside a program on the {backend}: use atari_jax/pong, "
                "or the Sebulba runtime, which steps the ALE on the host"
            )
        return AtariVector(self, num_envs, seed)

    def host(self, num_envs: int, seed: int, first_env: int = 0) -> EnvpoolHost:
        """`num_envs` games in one pool. With envpool, game `first_env + i` does what it does in `vectorize` with that seed."""
        if self.config.backend == "ale":
            from podracer.envs.ale_host import AleHost

            return AleHost(self.spec, self.game, self.config, num_envs, seed, first_env)
        return AtariHost(self, num_envs, seed, first_env)


class _State(Struct):
    """handle: `[8]` uint8, stands for the pool and orders its calls. last: `[B]` bool, the next step is a reset.
    lives: `[B]` int32. ram: `[B, 128]` uint8, or empty where no observation needs it."""

    handle: Array
    last: Array
    lives: Array
    ram: Array | tuple[()]


class AtariVector(VectorEnvironment):
    """A pool of games. Its state lives in the emulators: `step` must see the states in the order in which they came.

    On one device and for one seed: under `vmap`, or for another batch than the pool's, `step` raises Unsupported.
    """

    pure = False

    def __init__(self, environment: Atari, num_envs: int, seed: int):
        import envpool

        self.spec, self.config = environment.spec, environment.config
        self.num_envs = num_envs
        self._pool = envpool.make(environment.env_id, **pool_options(self.config, num_envs, seed))
        self._handle, _, _, pool_step = self._pool.xla()
        self._step = jax.custom_batching.custom_vmap(pool_step)
        self._step.def_vmap(self._refuse_vmap)

    def reset(self, key: Key) -> tuple[_State, TimeStep]:
        """Starts all games. Not to be called while a program that steps this pool is running.

        `key` `[B]` only gives the batch; randomness comes from the seed of `vectorize`, and goes on where it was.
        """
        self._check_batch(key.shape)
        if isinstance(key, jax.core.Tracer):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._empty())
            handle, pixels, lives, ram = io_callback(self._reset_pool, like)
        else:
            handle, pixels, lives, ram = jax.tree.map(jnp.asarray, self._reset_pool())
        keeps_ram = self.config.observation == "objects"
        state = _State(handle=handle, last=jnp.zeros(self.num_envs, bool), lives=lives, ram=ram if keeps_ram else ())
        return state, jax.vmap(types.restart)(_observation(self.config, pixels, ram, ram))

    def step(self, state: _State, action: Array, key: Key) -> tuple[_State, TimeStep]:
        del key  # the emulators have their own randomness
        self._check_batch(action.shape)
        handle, (pixels, reward, _, truncated, info) = self._step(state.handle, action.astype(jnp.int32))
        keeps_ram = self.config.observation == "objects"
        ram = info["ram"] if keeps_ram else ()
        ram_tm1 = jnp.where(state.last[:, None], info["ram"], jnp.asarray(state.ram)) if keeps_ram else ()
        observation = _observation(self.config, pixels, info["ram"], ram_tm1)
        terminated = _terminated(self.config, info, state.lives)
        timestep = arrive(jnp, state.last, reward, terminated, truncated, observation)
        return _State(handle=handle, last=timestep.last(), lives=info["lives"], ram=ram), timestep

    def render(self, state: _State) -> np.ndarray:
        """The newest frame of the first game in colour, `[210, 160, 3]` uint8. Waits until `state` is computed."""
        jax.block_until_ready(state)
        return np.asarray(self._pool.render(env_ids=[0])[0])

    def close(self) -> None:
        """Nothing to release by hand: the emulators go when the last program that steps them goes."""

    def _reset_pool(self) -> tuple[np.ndarray, ...]:
        """Handle, pixels as envpool lays them out, lives and RAM."""
        pixels, info = self._pool.reset()
        return self._handle, pixels, info["lives"], info["ram"]

    def _empty(self) -> tuple[np.ndarray, ...]:
        """Arrays like those of `_reset_pool`."""
        pixels = np.broadcast_to(np.uint8(0), (self.num_envs, *self._pool.spec.observation_space.shape))
        return self._handle, pixels, np.zeros(self.num_envs, np.int32), np.zeros((self.num_envs, 128), np.uint8)

    def _check_batch(self, shape: tuple[int, ...]) -> None:
        if shape != (self.num_envs,):
            raise Unsupported(
                f"{self.spec.name} steps its {self.num_envs} games together, not {shape}: run it with one device and one seed"
            )

    def _refuse_vmap(self, *_: Any) -> Any:
        raise Unsupported(f"{self.spec.name} cannot be vmapped: run it with one seed, or use atari_jax/pong")


class AtariHost(EnvpoolHost):
    """A pool of games, stepped from Python."""

    def __init__(self, environment: Atari, num_envs: int, seed: int, first_env: int):
        self.config = environment.config
        options = pool_options(self.config, num_envs, seed + first_env)  # envpool adds a game's number to the seed
        super().__init__(environment.spec, environment.env_id, options, first_env, self.config.batch_size)
        self._lives = np.zeros(num_envs, np.int32)
        self._ram = np.zeros((num_envs, 128), np.uint8)
        self._objects = jax.jit(lambda ram, ram_tm1: _observation(self.config, None, ram, ram_tm1))

    def _terminated(self, terminated: np.ndarray, info: dict[str, Any], first: np.ndarray, env_id: np.ndarray) -> np.ndarray:
        over = _terminated(self.config, info, self._lives[env_id])
        self._lives[env_id] = info["lives"]
        return over

    def _observe(self, observation: Any, info: dict[str, Any], first: np.ndarray, env_id: np.ndarray) -> np.ndarray:
        if self.config.observation != "objects":
            return _observation(self.config, observation, info["ram"], ())
        ram_tm1 = np.where(first[:, None], info["ram"], self._ram[env_id])
        self._ram[env_id] = info["ram"]
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return np.asarray(self._objects(info["ram"], ram_tm1))


def _terminated(config: Config, info: dict[str, Any], lives_tm1: Any) -> Any:
    """`[n]` bool from envpool's `info`, whose flag knows a game over at the limit; lives_tm1 `[n]`, one agent step ago."""
    lost_life = (info["lives"] < lives_tm1) & (info["lives"] > 0) & config.episodic_life
    return (info["terminated"] != 0) | lost_life


def _observation(config: Config, pixels: Any, ram: Any, ram_tm1: Any) -> Any:
    """The observation from pixels `[n, C, H, W]` and RAM `[n, 128]` (one agent step ago: for `objects` alone)."""
    if config.observation == "ram":
        return ram
    if config.observation == "objects":
        from podracer.envs.atari_jax import objects

        return objects.from_ram(ram, ram_tm1, config.frame_skip)
    return pixels.transpose(0, 2, 3, 1)


def _observation_spec(config: Config) -> specs.Array:
    if config.observation == "objects":
        from podracer.envs.atari_jax import objects

        return specs.Array((objects.NUM_FEATURES,), "float32", name="objects")
    if config.observation == "ram":
        return specs.BoundedArray((128,), "uint8", 0, 255, name="ram")
    channels = config.stack * (1 if config.grey else 3)
    return specs.BoundedArray((config.image_height, config.image_width, channels), "uint8", 0, 255, name="pixels")


def _num_minimal_actions(env_id: str) -> int:
    import envpool

    return int(envpool.make_spec(env_id, full_action_space=False).action_space.n)


SUITE = Suite(
    make=Atari,
    tasks=tasks,
    config=Config,
    summary="the Arcade Learning Environment (104 games), on a CPU host",
    package="envpool",
    default_task="pong",
)
