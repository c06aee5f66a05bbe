"""Jobs on many hosts: who places their processes, who watches them, and what is left to read of them.

* `processes.py`: the processes of one host; they end with whoever started them.
* `places.py`: hosts to start them on, as the rest sees them; `ray_places.py`: those of Ray, on a cluster or simulated here.
* `gang.py`: starts a job's processes on all hosts, watches them, and starts all again from the last checkpoint when one fails.
* `record.py`: what a run folder tells of it, for `podracer status`, `stop` and `logs`.
* `commands.py`, `sweep.py`: the command line.
"""
