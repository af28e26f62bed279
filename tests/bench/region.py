"""Text of a page that a benchmark makes: it stands between <!-- prunegpt:NAME --> and <!-- /prunegpt:NAME -->."""

import re


def replaced(text: str, name: str, body: str) -> str:
    """The text with this body between its markers.

    Raises:
        ValueError: the markers are not there, or more than once.
    """
    region = re.compile(
        rf"(?P<open>^[ \t]*<!-- prunegpt:{name} -->[ \t]*\n)(?:.*?)(?P<close>^[ \t]*<!-- /prunegpt:{name} -->)",
        re.DOTALL | re.MULTILINE,
    )
    found = len(region.findall(text))
    if found != 1:
        raise ValueError(
            f"a file must hold the lines <!-- prunegpt:{name} --> and <!-- /prunegpt:{name} --> once; it has them "
            f"{found} times. Add them where the text should stand."
        )
    return region.sub(lambda match: f"{match['open']}\n{body}\n{match['close']}", text)
