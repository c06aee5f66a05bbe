"""`nav/vizdoom_maze`: the mazes, actions, rewards and labels of `nav/ray_maze` in Doom, on the host, through ViZDoom.

Wydmuch, Kempka and Jaskowski 2019, https://arxiv.org/abs/1809.03470. What is Doom's own:

* Bodies: the agent gathers its speed over some ten frames, and slides as long; turning has no inertia. It is a box of half a
  square, as in `ray_maze`.
* Looks: textures of Freedoom, which ViZDoom brings; an apple is a red skull, a strawberry a yellow one, the goal a green ball.
  What has been eaten is seen for one step more.
* Depth comes from Doom's depth buffer, in steps of 0.22 squares.
* The view is at most 90 degrees wide and 74 degrees high; a picture that should be higher is stretched.

Where util-linux's `setpriv` is, which it is nearly everywhere, a game ends with its worker process even if that is killed.
"""

import functools
import importlib.util

from podracer import registry
from podracer.environment import Unsupported
from podracer.envs.nav import vizdoom_worker
from podracer.envs.nav.config import NavConfig
from podracer.envs.nav.ray_maze import RayMaze
from podracer.processes import ProcessEnvironment


def make(name: str, config: NavConfig) -> ProcessEnvironment:
    """The environment. Its signature is that of `ray_maze`.

    Raises:
      NotFound: ViZDoom is not installed. Unsupported: Doom cannot show what the settings ask for.
    """
    if importlib.util.find_spec("vizdoom") is None:
        raise registry.NotFound(f"{name} needs vizdoom: pip install 'podracer-rl[vizdoom]'")
    config = config.resolved()
    try:
        vizdoom_worker.view(config)
    except ValueError as error:
        raise Unsupported(f"{name}: {error}") from error
    factory = functools.partial(vizdoom_worker.make, config=config)
    return ProcessEnvironment(RayMaze(name, config).spec, factory, config.num_workers)
