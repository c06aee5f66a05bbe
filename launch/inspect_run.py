"""What can be asked of a run folder after the run."""

from pathlib import Path

import jax

from podracer.checkpoint import Checkpoints
from podracer.config import ConfigError
from podracer.launch import job as jobs
from podracer.launch import report
from podracer.launch.signals import StopRequests
from podracer.metrics.pictures import write_video


def evaluate_run(run_dir: Path, episodes: int, seed: int, video: Path | None, requests: StopRequests) -> None:
    """Plays the newest checkpoint of a run and prints what came out.

    Raises:
      ConfigError: the folder holds no run or no checkpoint, or the checkpoint is damaged; or there is no picture to record.
    """
    job, _ = jobs.load_job(run_dir)
    parts = jobs.build(job)
    agent = parts.agent
    target = jax.eval_shape(lambda: agent.actor_params(agent.init(jax.random.key(0))))
    checkpoints = Checkpoints(run_dir / "checkpoints", jobs.fingerprint(job))
    try:
        saved = checkpoints.restore_params([target] * job.num_seeds)
    finally:
        checkpoints.close()
    print(f"{job.agent_name} on {job.env_name} after {saved.step:,} updates", flush=True)
    stats = report.play(job, parts, saved.state, episodes, seed, record=video is not None, requests=requests)
    for line in report.describe(job, stats):
        print(line)
    if video is not None:
        if stats[0].frames is None:
            raise ConfigError(f"--video: {job.env_name} has no picture to show")
        write_video(video, stats[0].frames)
        print(f"wrote {video}, {len(stats[0].frames)} frames")
