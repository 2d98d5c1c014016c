"""kdrun check: test one method for the properties that every method must have."""

from __future__ import annotations

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import NoOptions, parse
from kdrun.config.compose import load
from kdrun.config.groups import choices
from kdrun.config.own_code import located
from kdrun.errors import ConfigError, PairingError, RunError

HELP = """
usage: kdrun check method=NAME [method.KEY=VALUE …] [--config-dir FOLDER]

Tests a method for some seconds on tiny networks with random weights, a CNN and a ViT in either role: is every part of
it trained, does the teacher stay unchanged, do small batches, bf16 and resuming work, does every setting have an
effect, do two processes that share a batch get the same result as one?
For your own method, before its first run. Exit code 1 if a property does not hold.

  kdrun check method=mine --config-dir my_conf
"""


def command(words: list[str]) -> int:
    parsed = parse("check", words, NoOptions, passes=True)
    settings = [*(f"method={name}" for name in parsed.names), *parsed.overrides]
    for word in settings:
        if not word.startswith(("method=", "method.")):
            raise ConfigError(f"check: {word}: check takes only the method and its settings.")
    if not any(word.startswith("method=") for word in settings):
        raise ConfigError(f"check needs method=NAME; available: {', '.join(choices('method', parsed.config_dir))}.")
    return check(load(settings, parsed.config_dir).method)


def check(node: dict) -> int:
    """Print one line for each property. Return 1 if one does not hold."""
    from kdrun.training.method_check import all_checks
    from kdrun.training.method_trial import Subject

    subject, failed, count = Subject(node), 0, 0
    try:
        subject.pair  # noqa: B018 (a method that cannot be built gives one line, not one for each property)
    except Exception as error:
        raise RunError(located(error)) from error
    for name, promise, run in all_checks(subject):
        mark, why, count = "[green]ok    [/]", promise, count + 1
        try:
            run()
        except PairingError as error:
            mark, why = "[yellow]refuses[/]", str(error)
        except Exception as error:
            mark, why, failed = "[bold red]FAILED[/]", located(error), failed + 1
        console.say(f"{mark} [bold]{escape(name)}[/]: {escape(why)}")
    console.say(f"{count - failed} of {count} properties hold." if failed else f"all {count} properties hold.")
    return 1 if failed else 0
