"""Completion of the command line by Tab: a script for the shell, in which all words stand.

The script names commands, recipes, options and their choices; it starts no Python, so that Tab answers at once.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import cast

import tyro
from pydantic import BaseModel

BASH = """_latentbits() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" last="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" = 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}} $last" in
{choices}
      *) case "${{COMP_WORDS[1]}}" in
{options}
      esac
      case "${{COMP_WORDS[1]}} $COMP_CWORD" in
{first}
      esac
      case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{more}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _latentbits latentbits
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"

Options = dict[str, list[str] | None]
"""Options, and the words that can follow each: none where they cannot be listed, None where nothing follows."""


def dashed(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def choices_of(annotation: object) -> list[str] | None:
    """The words that a value can be on a command line, if they can be listed; None for a switch, which has none."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if annotation in (bool, bool | None):
        return None
    if typing.get_origin(annotation) is not typing.Literal:
        return []
    return [str(word) for word in typing.get_args(annotation) if word != "given"]  # which is for Python


def options_of(function: Callable[..., object]) -> Options:
    """A command's options and their choices, by its signature; words without dashes are left out."""
    hints, marker = typing.get_type_hints(function, include_extras=True), cast(object, tyro.conf.Positional)
    named = {name: hints[name] for name in inspect.signature(function).parameters}
    return {dashed(n): choices_of(hint) for n, hint in named.items() if marker not in getattr(hint, "__metadata__", ())}


def options_of_section(section: type[BaseModel], leave_out: tuple[str, ...], prefix: str = "") -> Options:
    """A configuration's options and their choices, those of its sections with the section's name before them."""
    options: Options = {}
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            options |= options_of_section(kind, leave_out, f"{prefix}{name}.")
        elif name not in leave_out:
            options[dashed(prefix + name)] = choices_of(kind)
    return options


def script(
    commands: Mapping[str, Options], first_words: Mapping[str, list[str]], more: Mapping[str, list[str]], shell: str
) -> str:
    """The script.

    Arguments:
        commands: Each command's options, and their choices.
        first_words: What can stand right behind a command besides options, such as recipes.
        more: Options, with a free value, that a command has behind a certain first word only, by the two.
        shell: "bash" or "zsh".
    """
    choices, options = [], []
    for command, found in commands.items():
        choices += [f'"{command} {option}") words="{" ".join(words)}" ;;' for option, words in found.items() if words]
        if free := [f'"{command} {option}"' for option, words in found.items() if words == []]:
            choices.append(f"{'|'.join(free)}) ;;")  # without words, bash offers files
        options.append(f'{command}) words="{" ".join([*found, "--help"])}" ;;')
    first = [f'"{command} 2") words="{" ".join(words)} $words" ;;' for command, words in first_words.items()]
    choices += [f'"{both.split()[0]} {option}") ;;' for both, found in more.items() for option in found]
    only = [f'"{both}") words="$words {" ".join(found)}" ;;' for both, found in more.items()]
    parts = {"choices": choices, "options": options, "first": first, "more": only}
    indented = {name: "\n".join(f"        {line}" for line in lines) for name, lines in parts.items()}
    bash = BASH.format(commands=" ".join(commands), **indented)
    return (ZSH if shell == "zsh" else "") + bash
