"""`python -m deploy.bench tunnel …` is `gossamer bench tunnel …`."""

import argparse
import sys

from deploy.bench import register

parser = argparse.ArgumentParser(prog="python -m deploy")
register(parser.add_subparsers(required=True))
arguments = parser.parse_args(["bench", *sys.argv[1:]])
sys.exit(arguments.run(arguments))
