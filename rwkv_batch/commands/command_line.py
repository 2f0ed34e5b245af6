"""What the command lines of the commands share."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from ..job.messages import printable

EXIT_OK = 0
EXIT_ROW_ERRORS = 3

EXIT_CODES = """\
exit codes:
    0  done
    1  a file cannot be read or written
    2  the command line is wrong, or what it names is not as the command needs it; nothing has been written
  130  interrupted by Ctrl-C"""


def command_parser(
    commands: Any, name: str, summary: str, description: str, example: str, exit_codes: str = EXIT_CODES
) -> argparse.ArgumentParser:
    """Returns a new command's parser.

    Args:
        example: a command line, for the end of its help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 100),
        epilog=f"example:  {example}\n\n{exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def say(text: str) -> None:
    """Prints text of users, without characters that steer a terminal."""
    print(printable(text))
