"""The entry point: which verbs there are, and how an error becomes one line and an exit code.

A verb's module is imported only when it is called, so that `headway --help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

VERBS: dict[str, str] = {
    "probe": "measure this machine into a target",
    "optimize": "bring a model under a budget, with evidence and a report",
    "apply": "apply one recipe to a model, no search",
    "serve": "an OpenAI-compatible server: many requests at once",
    "search": "a network for this machine, from a space of networks",
    "plan": "a problem to a plan: which machines, which settings of a server",
    "generate": "one completion, or a chat where there is a terminal",
    "bench": "throughput and latency beside other engines, interleaved in one run",
    "prove": "run a system's proof: the paper's figure, ours and the bar",
    "systems": "what there is: systems and packaged models",
    "report": "one HTML file from evidence, that works offline",
}

USAGE = """headway VERB ...

Bring a model, a machine and a budget; leave with what meets it, and the measurement that proves it.

{verbs}

headway VERB --help explains a verb. Start with:
  headway optimize smollm2-135m --budget "size<=88MB, quality>=0.95" --minimize latency -o out/
"""


def usage() -> str:
    return USAGE.format(verbs="\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (0 yes, 1 no, 2 bad input, 3 lacking, 130 interrupted)."""
    from headway.core import interrupts

    _open_streams()
    try:
        with interrupts.kept():
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # whoever read the answer has seen enough
        code = 0
    if code == 130:  # also what a server gives for Ctrl-C
        exec("")  # else `python -m` ends by the signal where Ctrl-C came within an eval, as of each namedtuple
        _say("interrupted; everything measured so far is kept, run the same command to go on")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # what could not be written would fail again when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _open_streams() -> None:
    """An empty stream for each that was closed; escapes for what standard output's encoding does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(words: list[str]) -> int:
    from headway.core.errors import HeadwayError, extras_named

    try:
        with extras_named():
            code = _answer(words)
        sys.stdout.flush()
        return code
    except HeadwayError as error:
        _trace()
        caret = getattr(error, "caret", None)
        if caret is not None and sys.stderr.isatty():
            print(caret(), file=sys.stderr)
        _say(" ".join(str(error).split()))
        return error.exit_code
    except BrokenPipeError:
        raise
    except (OSError, MemoryError, RecursionError, TypeError, ValueError) as error:
        from headway.core.files import NO_SPACE, explain

        _trace()
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            _say(str(explain(error, "standard output")))
            return 3
        said = " ".join(str(error).split())[:300] or type(error).__name__
        _say(f"{words[0]}: {said}; check what was given, or see where with -v")
        return 3 if isinstance(error, MemoryError) else 2
    except RuntimeError as error:
        if not str(error).startswith("HEADWAY_ISA="):
            raise
        _say(str(error))
        return 3 if "this machine has only" in str(error) else 2


def _say(line: str) -> None:
    """One line for people; where nobody can read it, the exit code says it alone."""
    with suppress(OSError):
        print(f"headway: {line}", file=sys.stderr)


def _trace() -> None:
    """What `-v` shows above the line that names the error; the exit code is the same without it."""
    if os.environ.get("HEADWAY_TRACEBACK"):
        import traceback

        traceback.print_exc()


def _answer(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if words[0] == "--version":
        from headway.core.version import __version__

        print(f"headway {__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        from difflib import get_close_matches

        from headway.core.errors import BadInput

        near = get_close_matches(verb, VERBS, n=1)
        raise BadInput(f"no verb {verb!r}", f"did you mean {near[0]}?" if near else f"verbs are: {', '.join(VERBS)}")
    return _call(verb, words[1:])


def _call(verb: str, words: list[str]) -> int:
    """Import the verb's module and run its `command`; whatever integer it returns is the exit code."""
    if verb == "systems" and set(words) <= {"--json", "--models"}:
        from headway.cli.listing import show  # the parser alone takes longer than the whole answer

        return show("--models" in words, "--json" in words)
    import typer

    from headway.cli.options import with_session
    from headway.core.errors import BadInput

    module = importlib.import_module(f"headway.cli.{verb}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name=verb, help=module.command.__doc__)(with_session(module.command))
    command = typer.main.get_command(app)
    try:
        with command.make_context(verb, [], resilient_parsing=True) as context:
            given = command.make_parser(context).parse_args(list(words))[2]
        for option in given:
            if given.count(option) > 1 and not (option.multiple or option.is_flag or option.count):
                raise BadInput(f"{verb}: {option.opts[0]} is given twice", "give it once: the first would be ignored")
        with command.make_context(f"headway {verb}", words) as context:  # its `main` would end a broken pipe with 1
            return int(command.invoke(context) or 0)
    except typer.Exit as done:  # after --help
        return done.exit_code
    except Exception as error:
        # The parser's errors: click's own, or those of the copy that newer versions of typer carry.
        if not hasattr(error, "format_message"):
            raise
        said = " ".join(error.format_message().rstrip(".").split())
        if extra := re.search(r"extra arguments?(?:\(s\))? \((.*)\)", said):
            said = f"{extra[1]!r} is one argument too many"
        raise BadInput(f"{verb}: {said[:1].lower()}{said[1:]}", f"see: headway {verb} --help") from None


if __name__ == "__main__":
    sys.exit(main())
