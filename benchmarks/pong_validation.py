"""Our own Pong against the ALE's: the same frames, the same returns, the same policies.

    python benchmarks/pong_validation.py [--frames 20000] [--episodes 64] [--policy RUN_DIR ...] [--write]

Prints one JSON line a case:
* `frames`: both games get the same actions on every frame; the share of frames that agree in every position, velocity and
  score, in a game that is never corrected, and of pictures of 210x160 pixels that agree in every pixel;
* `returns`: fixed players in `atari_jax/pong` and in `atari/pong`, both with their default options (sticky actions): return and
  length of an episode, mean with standard error;
* `policy`: what a run folder's newest checkpoint scores in either, wherever it was trained.

With `--write` the tables in envs/atari_jax/README.md are replaced by what came out.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ale_py
import common
import jax
import jax.numpy as jnp
import numpy as np

from podracer import registry
from podracer.checkpoint import Checkpoints
from podracer.envs.atari_jax import physics, rendering
from podracer.evaluate import EpisodeStats, evaluate
from podracer.launch import job as jobs
from podracer.types import ActorOutput

NAMES = ("atari_jax/pong", "atari/pong")
README = Path(__file__).parent.parent / "envs" / "atari_jax" / "README.md"
ADDRESSES = {
    "ball_x": 49, "ball_y": 54, "ball_dx": 58, "ball_dy": 56, "enemy_y": 50, "player_y": 51, "player_next": 60, "clock": 8,
    "wait": 11, "enemy_score": 13, "player_score": 14,
}  # fmt: skip
UP, DOWN, IDLE = 3, 4, 0
WITH_BUTTON = {UP: 11, DOWN: 12, IDLE: 1}


class Player:
    """A fixed player, as far as `evaluate` needs an agent. It reads the observation `objects`.

    aim: None for uniform random actions, `idle`, or the row of the paddle (-1 to 15) that shall meet the ball.
    """

    def __init__(self, aim: int | str | None, button: bool = False):
        self.aim, self.button = aim, button

    def initial_actor_state(self, batch_size: int) -> tuple[()]:
        del batch_size
        return ()

    def act(self, params: Any, actor_state: Any, timestep: Any, key: Any, mode: Any) -> tuple[ActorOutput, Any]:
        del params, mode
        seen = timestep.observation
        if self.aim is None:
            action = jax.vmap(lambda k: jax.random.randint(k, (), 0, 18))(key)
        elif self.aim == "idle":
            action = jnp.zeros(seen.shape[0], jnp.int32)
        else:
            in_play, ball_y, towards, paddle = seen[:, 0] > 0, seen[:, 2] * 80 + 125, seen[:, 3] > 0, seen[:, 5] * 80 + 120
            error = jnp.where(in_play & towards, paddle - (ball_y - self.aim), 0)
            up, down, idle = (WITH_BUTTON[a] if self.button else a for a in (UP, DOWN, IDLE))
            action = jnp.where(error > 4, up, jnp.where(error < -4, down, idle))
        return ActorOutput(action=action.astype(jnp.int32), log_prob=jnp.zeros(seen.shape[0])), actor_state


PLAYERS = {
    "idle": Player("idle"),
    "random": Player(None),
    "follows the ball, middle of the paddle": Player(7),
    "follows the ball, upper end": Player(0),
    "follows the ball, lower end": Player(14),
    "follows the ball, middle, button down": Player(7, button=True),
    "follows the ball, lower end, button down": Player(14, button=True),
}


def play_ale(num_frames: int, button: bool, seed: int) -> Iterator[tuple[int, bool, np.ndarray, np.ndarray]]:
    """Action, whether a game starts, and RAM and picture before the action, under a player who follows the ball with errors."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(str(ale_py.roms.get_rom_path("pong")))
    generator = np.random.default_rng(seed)
    starts, aim = True, 7
    for t in range(num_frames):
        ram = ale.getRAM().astype(np.int32)
        aim = int(generator.integers(-4, 20)) if t % 97 == 0 else aim
        error = ram[51] - (ram[54] - aim)
        action = UP if error > 3 else DOWN if error < -3 else IDLE
        action = int(generator.choice([UP, DOWN, IDLE])) if generator.random() < 0.1 else action
        action = WITH_BUTTON[action] if button and generator.random() < 0.5 else action
        yield action, starts, ale.getRAM(), ale.getScreenRGB()
        ale.act(ale_py.Action(action))
        starts = ale.game_over()
        if starts:
            ale.reset_game()


def frames_case(num_frames: int, button: bool, seed: int) -> dict[str, Any]:
    """How many frames agree. Our game is never set right again: one wrong frame would spoil the rest of its game."""
    step, picture = jax.jit(physics.frame), jax.jit(rendering.frame_rgb)
    ours = physics.new_game()
    same_state = same_picture = games = points = first_frames = 0
    for action, starts, ram, screen in play_ale(num_frames, button, seed):
        if starts:
            ours, games, first_frames = physics.new_game(), games + 1, first_frames + 1
        else:
            values = {name: int(ram[address]) for name, address in ADDRESSES.items()}
            for name in ("ball_dx", "ball_dy"):
                values[name] = (values[name] + 128) % 256 - 128
            same_state += all(int(getattr(ours, name)) == value for name, value in values.items())
            same_picture += bool((np.asarray(picture(ours)) == screen).all())
            points += values["wait"] == physics.SCORE_FRAMES
        ours = step(ours, int(physics.ACTION_TURN[action]), int(physics.ACTION_FIRE[action]))
    compared = num_frames - first_frames
    return {
        "case": "frames",
        "button": button,
        "frames": compared,
        "games": games,
        "points": points,
        "same_state": same_state / compared,
        "same_picture": same_picture / compared,
    }


def summary(stats: EpisodeStats) -> dict[str, float]:
    """Mean and standard error of returns, and mean length in agent steps."""
    error = stats.returns.std(ddof=1) / np.sqrt(len(stats.returns)) if len(stats.returns) > 1 else float("nan")
    return {
        "return": round(float(stats.returns.mean()), 2),
        "standard_error": round(float(error), 2),
        "length": round(float(stats.lengths.mean()), 1),
    }


def returns_case(name: str, player: Player, num_episodes: int) -> dict[str, Any]:
    """One fixed player in both environments."""
    result: dict[str, Any] = {"case": "returns", "player": name, "episodes": num_episodes}
    for env_name in NAMES:
        env = registry.env(env_name)
        environment = env.make(env.suite.config(observation="objects"))
        stats = evaluate(player, environment, (), num_episodes, seed=1, num_envs=min(num_episodes, 32))  # type: ignore[arg-type]
        result[env_name] = summary(stats)
    return result


def policy_case(run_dir: Path, num_episodes: int) -> dict[str, Any]:
    """The newest checkpoint of a run, in both environments, with the options that the run had."""
    job, _ = jobs.load_job(run_dir)
    agent = jobs.build(job).agent
    target = jax.eval_shape(lambda: agent.actor_params(agent.init(jax.random.key(0))))
    checkpoints = Checkpoints(run_dir / "checkpoints", jobs.fingerprint(job))
    saved = checkpoints.restore_params([target] * job.num_seeds)
    checkpoints.close()
    result: dict[str, Any] = {
        "case": "policy",
        "agent": job.agent_name,
        "trained_in": job.env_name,
        "observation": job.env.observation,
        "agent_steps": job.num_steps,
        "episodes": num_episodes,
    }
    options = dataclasses.asdict(job.env)
    for env_name in NAMES:
        env = registry.env(env_name)
        known = {field.name for field in dataclasses.fields(env.suite.config)}
        environment = env.make(env.suite.config(**{key: value for key, value in options.items() if key in known}))
        stats = evaluate(agent, environment, saved.state[0], num_episodes, seed=1)
        result[env_name] = summary(stats)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """The Markdown that the README shows."""
    frames = []
    for r in (r for r in results if r["case"] == "frames"):
        player = f"follows the ball with errors, {'with' if r['button'] else 'without'} the button"
        shares = [f"{r['same_state']:.4%}", f"{r['same_picture']:.2%}"]
        frames.append([player, f"{r['frames']:,}", r["games"], r["points"], *shares])
    players = []
    for r in (r for r in results if r["case"] != "frames"):
        player = r.get("player")
        if r["case"] == "policy":
            steps = f"{r['agent_steps'] / 1e6:g}M steps"
            player = f"{r['agent']}, trained in `{r['trained_in']}` ({r['observation']}, {steps})"
        cells = [cell for name in NAMES for cell in _cells(r[name])]
        players.append([player, r["episodes"], *cells])
    columns = ["same actions in both", "frames", "games", "points", "frames that agree", "pictures that agree"]
    header = ["player", "episodes", *(column for name in NAMES for column in (f"`{name}`: return", "length"))]
    return f"{common.table(columns, frames)}\n{common.table(header, players)}".rstrip()


def _cells(stats: dict[str, float]) -> list[str]:
    return [f"{stats['return']:.2f} ± {stats['standard_error']:.2f}", f"{stats['length']:.0f}"]


def write(text: str) -> None:
    """Replaces what stands between the README's two marks."""
    begin, end = "<!-- pong_validation begin -->", "<!-- pong_validation end -->"
    before, rest = README.read_text().split(begin)
    after = rest.split(end)[1]
    README.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--frames", type=int, default=20_000, help="frames of each comparison")
    parser.add_argument("--episodes", type=int, default=64, help="episodes of each player in each environment")
    parser.add_argument("--policy", type=Path, nargs="*", default=[], help="run folders")
    parser.add_argument("--write", action="store_true", help="replace the tables in the README")
    arguments = common.parse(parser)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    results: list[dict[str, Any]] = []

    def report(result: dict[str, Any]) -> None:
        common.emit("pong_validation", **result)
        results.append(result)

    for button in (False, True):
        report(frames_case(arguments.frames, button, seed=int(button)))
    for name, player in PLAYERS.items():
        report(returns_case(name, player, arguments.episodes))
    for run_dir in arguments.policy:
        report(policy_case(run_dir, arguments.episodes))
    if arguments.write:
        write(table(results))


if __name__ == "__main__":
    main()
