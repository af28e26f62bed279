"""Notes as HTML: Markdown, of which nothing but harmless elements stays."""

from functools import cache

import nh3
from markdown_it import MarkdownIt

_TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}


def render(text: str) -> str:
    """HTML that may stand in a page, whatever the text is.

    Written HTML is shown as text, images are left out, and links lead to http, https and mail only.
    """
    return nh3.clean(
        _parser().render(text),
        tags=_TAGS,
        attributes={"a": {"href", "title"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
