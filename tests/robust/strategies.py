"""What people and machines put into files: nearly right, half right, and not at all."""

from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324, 0.1])
ODD_FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf")])
ODD_TEXTS = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "a" * 300,
        "../../etc/passwd",
        "/dev/null",
        "~nobody/x",
        "\u202e\u2066",
        "${HOME}",
        "{sparsity}",
        "{0.__class__}",
        "{",
        "}",
        "%s%n",
        "re:(",
        "re:(a+)+$",
        "2:4",
        "4:2",
        "1e999",
        ".nan",
        "<script>alert(1)</script>",
        "'; drop table trial; --",
        "__import__('os').system('touch it-ran')",
        "eval(1)",
        "builtin:text",
        "builtin:none",
        "zoo:x",
        "s3://x/y",
        "http://localhost:1/x",
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), ODD_TEXTS, ODD_NUMBERS)


def anything(keys: st.SearchStrategy[str], leaves: int = 8) -> st.SearchStrategy[Any]:
    """Plain data whose mappings have these keys."""
    return st.recursive(
        SCALARS | ODD_FLOATS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5), inner, max_size=4),
        max_leaves=leaves,
    )


@st.composite
def changed(draw: st.DrawFn, good: Any, odd: st.SearchStrategy[Any], times: int = 2) -> Any:
    """Good data with one or two places in it replaced, removed or doubled."""
    data = draw(st.just(good))
    for _ in range(draw(st.integers(1, times))):
        data = _changed(draw, data, odd)
    return data


def _changed(draw: st.DrawFn, node: Any, odd: st.SearchStrategy[Any]) -> Any:
    if isinstance(node, dict) and node and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(node, key=str)))
        how = draw(st.sampled_from(["in", "in", "in", "out", "as", "more"]))
        rest = {name: value for name, value in node.items() if name != key}
        if how == "out":
            return rest
        if how == "as":
            return {**rest, draw(st.text(max_size=6)): node[key]}
        if how == "more":
            return {**node, draw(st.sampled_from(sorted(node, key=str)) | st.text(max_size=6)): draw(odd)}
        return {**node, key: _changed(draw, node[key], odd)}
    if isinstance(node, list) and node and draw(st.integers(0, 4)):
        index = draw(st.integers(0, len(node) - 1))
        how = draw(st.sampled_from(["in", "in", "in", "out", "twice"]))
        if how == "out":
            return node[:index] + node[index + 1 :]
        if how == "twice":
            return [*node, node[index]]
        return [*node[:index], _changed(draw, node[index], odd), *node[index + 1 :]]
    return draw(odd)


@st.composite
def damaged(draw: st.DrawFn, texts: list[str]) -> str:
    """A good text with one to three pieces of it replaced."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(start + 16, len(text))))
        piece = st.text("0123456789.-: ![]{}\n'\"eval()*&ab_<>#|%@\t\0é", max_size=8)
        text = text[:start] + draw(piece) + text[stop:]
    return text
