"""What the site needs beside mkdocs' own work: files of the repository, formulas as MathML, settings, docstrings."""

import html
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from griffe import Extension, Object
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from latentbits.config import Config

ROOT = Path(__file__).parents[1]
SETTINGS = "<!-- settings -->"


def on_files(files: Files, config: Any) -> Files:
    """Copy what pages link to outside of docs/ into the site, at its place in the repository."""
    pages = [page.content_string for page in files.documentation_pages()]
    linked = {name for page in pages for name in re.findall(r"\]\(\.\./([^)#]+)", page)}
    for name in sorted((linked | {"CHANGELOG.md"}) - {"README.md"}):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to those copies, for the README to the site's first page, and put the settings in their place."""
    markdown = markdown.replace("](../README.md", "](index.md").replace("](../", "](")
    return markdown.replace(SETTINGS, "\n".join(settings()))


def on_page_content(content: str, **_: Any) -> str:
    """Turn what arithmatex marked as formulas into MathML, which browsers draw by themselves."""
    forms = {
        "inline": r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        "block": r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>',
    }
    for display, form in forms.items():
        content = re.sub(form, partial(formula, display), content, flags=re.DOTALL)
    return content


def formula(display: Any, found: re.Match[str]) -> str:
    """MathML of a formula as arithmatex wrote it, with the space about log and ~ that the converter leaves out."""
    drawn = convert(html.unescape(found[1]).strip(), display=display)
    drawn = drawn.replace("<mi>log</mi>", '<mo rspace="0.17em">log</mo>')
    return drawn.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")


def settings() -> Iterator[str]:
    """A table of options, defaults and meanings for each section of the configuration."""
    default = Config()
    own = [name for name in Config.model_fields if not hasattr(getattr(default, name), "model_fields_set")]
    yield from table("The run", "What belongs to no section.", default, [name for name in own if name != "recipe"], "")
    for name in Config.model_fields:
        if name not in own and name != "warm_start":
            section = getattr(default, name)
            yield from table(f"`{name}`", type(section).__doc__ or "", section, type(section).model_fields, f"{name}.")


def table(title: str, text: str, section: Any, names: Any, prefix: str) -> Iterator[str]:
    """The rows of one section."""
    yield from ("", f"## {title}", "", " ".join(text.split()), "")
    yield from ("| option | default | meaning |", "| --- | --- | --- |")
    for name in names:
        info, value = type(section).model_fields[name], getattr(section, name)
        value = " ".join(str(each) for each in value) if isinstance(value, tuple) else value
        choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        meaning = [(info.description or "").replace("|", r"\|"), ", ".join(f"`{choice}`" for choice in choices)]
        option = f"--{prefix}{name}".replace("_", "-")
        yield f"| `{option}` | {f'`{value}`' if value != '' else ''} | {'<br>'.join(filter(None, meaning))} |"


class Docstrings(Extension):
    """Our docstrings have Sphinx's roles and formulas; the site is made of Markdown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """A docstring with $ for formulas, backquotes for names, and its references as a list."""
    text = re.sub(r"^( *)\.\. math::((?: .*)?\n(?:\1 +.*\n|\s*\n)*)", math_block, text + "\n", flags=re.M)
    text = re.sub(r":math:`([^`]*)`", lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r":(?:func|class|meth|mod|attr):`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"^( *)\| ", r"\1- ", text, flags=re.M)
    # a star stands for any leading dimensions; between formulas and code it must not begin an emphasis
    parts = re.split(r"(\$\$.*?\$\$|\$.*?\$|`[^`]*`)", text, flags=re.S)
    return "".join(part if number % 2 else part.replace("*", r"\*") for number, part in enumerate(parts))


def math_block(found: re.Match[str]) -> str:
    """A formula on lines of its own."""
    tex = " ".join(line.strip() for line in found[2].strip().splitlines())
    if "&" in tex or r"\\" in tex:
        tex = rf"\begin{{align*}} {tex} \end{{align*}}"
    return f"\n{found[1]}$$ {tex} $$\n\n"
