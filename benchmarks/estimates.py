"""How far estimates can be trusted: ``python benchmarks/estimates.py PART``.

Each part prints a table, or JSON, and fails where a limit is missed.
"""

import click

from shiftcore.benchmarks.estimated_cycles import cycles, speed
from shiftcore.benchmarks.estimated_resources import resources


@click.group(help=__doc__)
def main() -> None:
    """One command for each part."""


main.add_command(cycles)
main.add_command(speed)
main.add_command(resources)


if __name__ == "__main__":
    main()
