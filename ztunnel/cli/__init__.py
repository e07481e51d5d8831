"""Looking at a node's agent from the command line: `gossamer status | workloads | services | certificates | connections
| bpf`.

commands   declares the subcommands and runs them
client     finds agents and asks them over their unix sockets
columns    what of an answer stands in a table
tables     answers as rows of text
terminal   the same on a terminal: coloured, and fitted to its width

The server side of the same JSON is `ztunnel.admin`. Imports nothing heavy: the first line is on the screen in a tenth
of a second.
"""

from ztunnel.cli.commands import register

__all__ = ["register"]
