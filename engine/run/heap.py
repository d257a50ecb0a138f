"""The heap of a process that stays: what Python's collector of cycles has to look at.

The collector looks at every container that is alive, again and again, the more so the more are made; a worker has some
hundred thousand that came with its libraries and its models and stay as long as it does: 60 ms each time, during which
nothing is answered, and a fifth of what an output costs. They are put where it does not look, until the next time.
"""

import gc

YOUNG = 50_000


def settle() -> None:
    """What is alive now stays: the collector looks at it no more. Called when libraries and models are loaded; what was
    put away before and has gone since goes now.

    From then on it looks for cycles YOUNG new containers later, not 700: a worker with hundreds of messages under way
    makes that many with each batch, and they end by themselves."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
