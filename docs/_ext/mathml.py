"""Renders equations as MathML: no script and no font is fetched."""

import latex2mathml.converter
from docutils import nodes
from sphinx.util.math import get_node_equation_number


def inline(writer, node):
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def block(writer, node):
    number = ""
    if node["number"]:
        shown = get_node_equation_number(writer, node)
        number = f'<span class="eqno">({shown})</span>'
    name = f' id="equation-{node["label"]}"' if node.get("label") else ""
    mathml = latex2mathml.converter.convert(node.astext(), display="block")
    writer.body.append(f'<div class="math"{name}>{mathml}{number}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"version": "1", "parallel_read_safe": True}
