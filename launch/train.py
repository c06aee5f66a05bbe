"""One run from start to end: train, save, evaluate, and leave a folder that a person can look at."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from podracer.checkpoint import Checkpoints, Superseded
from podracer.config import JobConfig
from podracer.hosts import Hosts
from podracer.launch import job as jobs
from podracer.launch import report
from podracer.launch.loop import Call, Counters, updates
from podracer.launch.signals import Stopped, StopRequests
from podracer.metrics.log import MetricsLog
from podracer.metrics.meter import Meter
from podracer.metrics.progress import ProgressLine
from podracer.metrics.wandb_run import WandbRun, check_installed
from podracer.runtimes.sebulba.supervisor import ActorsFailed

_SECONDS_PER_ROW = 1.0
_SECONDS_OF_EVALUATION = 7 * 86400.0  # as long as it likes
_ACTOR_WORDS = {"env": "environment", "infer": "inference", "transfer": "transfer", "wait": "queue"}


class Diverged(Exception):
    """Parameters stopped being numbers. Its text is one line that says where the last good ones are."""


def train(
    job: JobConfig,
    preset: str,
    run_dir: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    requests: StopRequests | None = None,
    host: Hosts | None = None,
) -> int:
    """Builds a job, writes its run folder and trains it, or this host's part of it; what `podracer launch` does.

    Args:
      job, preset: as `job.new_job` or `job.load_job` gives them.
      run_dir: is made. resume: whether it holds the run before.
      dry_run: print what would run, and write nothing.
      requests: to stop; without, SIGTERM and Ctrl-C are what they are. host: among those that execute the job together.

    Returns:
      The exit code. Raises as `Run.execute`, and ConfigError where the job does not fit this machine.
    """
    host, requests = host or Hosts(), requests or StopRequests()
    parts = jobs.build(job)
    runtime = jobs.make_runtime(job, parts, preset, run_dir)
    with contextlib.ExitStack() as stack:
        stack.callback(runtime.close)
        memory = runtime.memory()
        if not dry_run:
            jobs.check_memory(memory, parts.plan.devices_per_host)
            if job.wandb and host.first:
                check_installed()
        if host.first:
            if not dry_run:
                jobs.save_job(run_dir, job, preset)
            print("\n".join(jobs.outline(job, parts, memory, preset, verbose=dry_run)), flush=True)
        if dry_run:
            return 0
        if host.first:
            print(f"run folder {run_dir}", flush=True)
        try:
            return Run(job, parts, runtime, run_dir, resume, requests, host).execute()
        except (Diverged, ActorsFailed, Superseded):
            if host.num > 1:
                stack.pop_all()  # an orderly end waits for the other hosts, and they for this one
            raise


@dataclasses.dataclass
class Run:
    """A job that is being executed, and where its results go.

    runtime: made from the parts. resumed: the folder held the run before. requests: to stop; whoever made it installed it
    before the first import. host: this process among those that execute the job together; the first one writes and evaluates.
    """

    job: JobConfig
    parts: jobs.Parts
    runtime: Any
    run_dir: Path
    resumed: bool
    requests: StopRequests
    host: Hosts = dataclasses.field(default_factory=Hosts)

    def execute(self) -> int:
        """Trains to the budget, evaluates, writes the folder.

        Returns:
          The exit code: 0 when done or after SIGTERM, 130 after Ctrl-C.

        Raises:
          ConfigError, Unsupported: what the user asked for cannot be; one line.
          Diverged: parameters are not finite. ActorsFailed: Sebulba's actors; what was learned is saved, if there is one host.
          Superseded: another generation of hosts executes this run.
        """
        runtime = self.runtime
        runtime.should_stop = lambda: self.requests.pending and self.host.num == 1
        checkpoints = Checkpoints(self.run_dir / "checkpoints", jobs.fingerprint(self.job), host=self.host)
        self.requests.nothing_to_lose = True
        wandb: WandbRun | None = None
        failed = True
        try:
            state, counters = self._start(checkpoints)
            if self.job.wandb and self.host.first:
                wandb = WandbRun(self.run_dir, self.job.wandb, jobs.settings(self.job))
                self._say(f"Weights & Biases: {wandb.place}")
            state, counters = self._train(state, counters, checkpoints, wandb)
            self.requests.nothing_to_lose = False
            self.host.went_on(then=_SECONDS_OF_EVALUATION)
            params = [runtime.actor_params(state, i) for i in range(self.job.num_seeds)]
            learned = [runtime.train_state(state, i).params for i in range(self.job.num_seeds)]
            if self.host.first:
                summary = report.finish(self.job, self.parts, self.run_dir, counters, params, learned, self.requests)
                if wandb is not None:
                    wandb.show(summary, self.run_dir)
            failed = False
        except Stopped as stopped:
            failed = False
            if not self.host.first:
                pass
            elif self.requests.nothing_to_lose:
                print(f"stopped by {stopped.name} before the first update")
            else:
                print(f"stopped by {stopped.name}: saved; --resume --run-dir {self.run_dir} goes on")
            return stopped.exit_code
        finally:
            checkpoints.close()
            if wandb is not None:
                wandb.close(failed)
        return 0

    def _start(self, checkpoints: Checkpoints) -> tuple[Any, Counters]:
        runtime = self.runtime
        state, counters = runtime.init(), Counters(agent_steps=(0,) * self.job.num_seeds)
        saved = checkpoints.restore(runtime.checkpoint(state)) if self.resumed else None
        if saved is not None:
            del state
            state, counters = runtime.restore(saved.state), Counters.from_json(saved.counters)
            self._say(f"resumed after update {counters.num_updates:,}, {counters.num_agent_steps:,} agent steps")
            if not runtime.resumes_exactly:
                self._say(f"{self.job.env_name}: its episodes start anew, so this run is not bit for bit the same")
        elif self.resumed:
            self._say("no checkpoint was saved yet: starting from the beginning")
        return state, counters

    def _say(self, text: str) -> None:
        if self.host.first:
            print(text, flush=True)

    def _train(self, state: Any, counters: Counters, checkpoints: Checkpoints, wandb: WandbRun | None) -> tuple[Any, Counters]:
        runtime, host = self.runtime, self.host
        log: MetricsLog | None = None
        if host.first:
            (self.run_dir / "summary.json").unlink(missing_ok=True)  # it was of an earlier end
            log = MetricsLog(self.run_dir, counters.num_updates, wandb)
        recorder = Recorder(self.job, self.parts, log)
        stop = False
        last_save = time.monotonic()
        saved_at = counters.num_updates if self.resumed and counters.num_updates else -1

        def save(wait: bool) -> None:
            nonlocal last_save, saved_at
            params = [runtime.actor_params(state, i) for i in range(self.job.num_seeds)]
            checkpoints.save(counters.num_updates, runtime.checkpoint(state), params, counters.to_json(), wait=wait)
            last_save, saved_at = time.monotonic(), counters.num_updates

        try:
            total = self.job.num_steps * self.job.num_seeds
            with open(os.devnull, "w") as nowhere, ProgressLine(total, "steps", None if host.first else nowhere) as line:
                if counters.agent_steps and min(counters.agent_steps) < self.job.num_steps:
                    line.say("compiling ...")
                calls = updates(runtime, state, counters, self.job.num_steps, agree=lambda number: host.agree(number)[0])
                for state, counters, call in calls:  # noqa: B007 - `save` uses the state
                    if not call.num_updates:
                        break
                    self.requests.nothing_to_lose = False
                    _check_finite(call, counters, self.job, saved_at)
                    recorder.record(counters, call, line)
                    host.went_on()
                    due = host.first and time.monotonic() - last_save >= self.job.checkpoint_seconds
                    stop, due = host.any(self.requests.pending, due)
                    if stop:
                        break
                    if due:
                        save(wait=False)
                recorder.flush(counters, line)
        except ActorsFailed:
            if counters.num_updates and saved_at != counters.num_updates and host.num == 1:
                save(wait=True)
            raise
        else:
            if counters.num_updates and saved_at != counters.num_updates:
                save(wait=True)
            checkpoints.wait()
        finally:
            if log is not None:
                log.close()
        self.requests.check()
        if stop:
            raise Stopped("a request to another host", 0)
        return state, counters


class Recorder:
    """Turns calls into rows and a progress line, about one row a second, more in the first seconds."""

    def __init__(self, job: JobConfig, parts: jobs.Parts, log: MetricsLog | None):
        self._frames_per_step, self._num_seeds = parts.environment.spec.frames_per_step, job.num_seeds
        self._log, self._meter = log, Meter()
        self._return = float("nan")

    def record(self, counters: Counters, call: Call, line: ProgressLine) -> None:
        """Adds a call."""
        self._meter.add(call.metrics, call.num_updates, call.seconds)
        if call.compiled:
            line.say(f"first update after {call.seconds:.1f} s")
        if call.compiled or self._meter.seconds >= min(_SECONDS_PER_ROW, 0.08 * counters.timed_seconds):
            self.flush(counters, line)

    def flush(self, counters: Counters, line: ProgressLine) -> None:
        """Writes what has come together."""
        if not self._meter.seconds:
            return
        row = self._meter.row()
        self._meter = Meter()
        row.pop("agent_steps")
        if self._log is None:
            return
        self._log.write(
            {
                "num_updates": counters.num_updates,
                "num_agent_steps": counters.num_agent_steps,
                "num_env_frames": counters.num_agent_steps * self._frames_per_step,
                "wall_seconds": counters.wall_seconds,
                **row,
            }
        )
        returns = np.asarray(row["episode_return"], np.float64).reshape(-1)
        if np.any(np.isfinite(returns)):
            self._return = float(np.nanmedian(returns))
        detail = "" if np.isnan(self._return) else f"return {self._return:.2f}"
        if "lag" in row:
            detail = "  ".join(part for part in (detail, _where_time_goes(row)) if part)
        rate = counters.timed_steps / counters.timed_seconds if counters.timed_seconds else float("nan")
        line.update(counters.num_agent_steps, rate, detail)


def _where_time_goes(row: dict[str, Any]) -> str:
    """Shares of the actors' and of the learner's time, and the lag between the two."""
    actor = ", ".join(f"{name} {row[f'actor_{key}']:.0%}" for name, key in _ACTOR_WORDS.items())
    learner = f"update {row['learner_update']:.0%}, wait {row['learner_wait']:.0%}"
    restarts = f"  {row['restarts']:.0f} restarts" if row["restarts"] else ""
    return f"actors: {actor}  learner: {learner}  lag {row['lag']:.1f}{restarts}"


def _check_finite(call: Call, counters: Counters, job: JobConfig, saved_at: int) -> None:
    bad = ~(np.asarray(call.metrics["finite"]).astype(bool).reshape(-1))
    for name in ("loss", "gradient_norm"):
        if name in call.metrics:
            bad = bad | ~np.isfinite(np.asarray(call.metrics[name]).reshape(-1))
    if np.any(bad):
        seed = job.seed + int(np.argmax(bad))
        where = f"the last good checkpoint is update {saved_at}" if saved_at >= 0 else "no checkpoint was saved before"
        raise Diverged(
            f"parameters or loss are not finite by update {counters.num_updates} (seed {seed}): "
            f"try a lower agent.learning_rate; {where}"
        )
