"""Globs: which paths below a folder a text with wildcards means. Matching takes no exponential time."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable


class Glob:
    """The paths that a glob means.

    `*`, `?` and `[...]` match within one folder or file name, `**` matches any number of folders.

    Args:
        text: the glob, relative to a folder.
    """

    def __init__(self, text: str) -> None:
        # fnmatch's expressions do not go back over a wildcard once what follows it is found. None stands for `**`.
        self._pieces = [None if piece == "**" else re.compile(fnmatch.translate(piece)) for piece in text.split("/")]

    def matches(self, path: str) -> bool:
        """Whether the glob means this path, which is relative to the same folder."""
        reached = self._and_after_folders({0})
        for name in path.split("/"):
            following = set()
            for index in reached:
                piece = self._pieces[index] if index < len(self._pieces) else _NO_MATCH
                if piece is None:
                    following.add(index)
                elif piece.match(name):
                    following.add(index + 1)
            reached = self._and_after_folders(following)
        return len(self._pieces) in reached

    def _and_after_folders(self, indices: Iterable[int]) -> set[int]:
        """The indices of the pieces that come next, where `**` may match no folder."""
        found = set()
        for start in indices:
            index = start
            found.add(index)
            while index < len(self._pieces) and self._pieces[index] is None:
                index += 1
                found.add(index)
        return found


_NO_MATCH = re.compile(r"(?!)")


def split_glob(path: str) -> tuple[str, Glob | None]:
    """Returns the folder before the first wildcard, and the glob below it; None for a path without wildcards."""
    pieces = path.split("/")
    first = next((index for index, piece in enumerate(pieces) if re.search(r"[*?\[]", piece)), None)
    if first is None:
        return path, None
    return "/".join(pieces[:first]) or ("/" if path.startswith("/") else "."), Glob("/".join(pieces[first:]))
