"""The library from Python: train a population of seeds, draw its curve, load the run again, evaluate and film it.

python examples/population.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from podracer.evaluate import Evaluator
from podracer.launch.inspect_run import load
from podracer.launch.job import Request, new_job
from podracer.launch.train import train
from podracer.metrics.pictures import curve, write_video

RUN = Path("runs/population")


def main() -> None:
    # What `podracer launch anakin --agent impala --env catch --seeds 8 ...` does. One program trains all seeds.
    request = Request("anakin", agent="impala", env="catch", seeds=8, steps=200_000, settings=["agent.learning_rate=1e-3"])
    job, preset = new_job(request)
    train(job, preset, RUN)

    steps, returns = curve(RUN)  # [R], [R, num_seeds]
    figure, axes = plt.subplots(layout="constrained")
    axes.plot(steps, returns, color="tab:blue", alpha=0.3)
    axes.plot(steps, np.nanmedian(returns, axis=1), color="tab:blue")
    axes.set(
        xlabel="agent steps", ylabel="return in training", title=f"{job.agent_name} on {job.env_name}, {job.num_seeds} seeds"
    )
    figure.savefig(RUN / "seeds.png")

    run = load(RUN)  # agent, environment, and parameters of each seed from the newest checkpoint
    evaluator = Evaluator(run.agent, run.environment, num_episodes=100, seed=1)
    results = [evaluator.run(params, record=True) for params in run.params]
    means = [float(result.returns.mean()) for result in results]
    evaluator.close()
    best = int(np.argmax(means))
    print(f"returns of the seeds over 100 episodes: {', '.join(f'{mean:.2f}' for mean in means)}; the best is {best}")
    write_video(RUN / "best.mp4", results[best].frames)


if __name__ == "__main__":
    main()
