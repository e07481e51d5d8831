"""The soak: for minutes on end, hundreds of connections of every kind in a lab, while policies flap and agents die.

    peer.py       the application at either end: knows every byte it should get; runs in pods, imports nothing of ours
    wave.py       what is asked of the connections of one wave, and whether what came of them is right (pure)
    leak.py       what agents and kernel hold when nothing is open
    command.py    `gossamer soak`

A connection that is permitted never ends in an error, unless the agent that carries it was killed; one that lost its
permission ends in an error; and whatever happens, what has arrived is an exact prefix of what was sent.
"""

from deploy.soak.command import register

__all__ = ["register"]
