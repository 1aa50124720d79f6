"""How far estimates can be trusted: ``python benchmarks/estimates.py PART``.

Each part prints a table, or JSON, and fails where a limit is missed.
"""

import click

from shiftcore.benchmarks.estimated_cycles import cycles, speed


@click.group(help=__doc__)
def main() -> None:
    """One command for each part."""


main.add_command(cycles)
main.add_command(speed)


if __name__ == "__main__":
    main()
