"""`headway generate`: one completion, or a chat where there is a terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from headway.cli.console import Session
from headway.core.errors import BadInput


def command(
    session: Session,
    model: Annotated[str, typer.Argument(help="MODEL: a packaged name, folder, .gguf file or artifact.")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to go on from.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Systems to apply first.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, max=1_000_000, help="128, or what the context leaves, when not given."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=100.0, help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0: off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", min=0.0, max=1.0)] = 0.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", min=0.01, max=100.0)] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Treat the prompt as a user's message (chat template).")] = False,
) -> int:
    """Complete a prompt, or chat when there is none and a terminal to talk to."""
    from headway.kernels import cpu
    from headway.optimize.api import apply, load, read_steps
    from headway.optimize.load import as_language

    if prompt is None and (session.as_json or not sys.stdin.isatty()):
        prompt = sys.stdin.read() if not sys.stdin.isatty() else None
        if not prompt:
            raise BadInput("no prompt", 'give one with -p "..." or on standard input')
    if prompt == "":
        raise BadInput("the prompt is empty", 'give one with -p "..."')
    if recipe is not None:
        read_steps(recipe)
    cpu.set_threads(session.threads)
    loaded = load(model, allow_code=session.allow_code)
    if recipe is not None:
        loaded = apply(recipe, loaded, threads=session.threads, seed=session.seed, progress=session.progress)
    language = as_language(loaded)
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop or ()),
        "seed": session.seed,
    }
    if prompt is None:
        return _talk(language, options)
    show = None if session.as_json else lambda text: print(text, end="", flush=True)
    if chat:
        answer = language.chat([{"role": "user", "content": prompt}], stream=show, **options)
    else:
        answer = language.generate(prompt, stream=show, **options)
    if session.as_json:
        session.emit({"text": answer, "prompt": prompt, "model": loaded.name, "options": options}, "")
    else:
        print()
    return 0


def _talk(language: Any, options: dict[str, Any]) -> int:
    language.render([{"role": "user", "content": "Hello"}])  # a model that cannot chat is refused before anybody types
    messages: list[dict[str, str]] = []
    print("Chat; an empty line, Ctrl-D or Ctrl-C ends it.", file=sys.stderr)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            try:
                said = input("> ").strip()
                if not said:
                    return 0
                asked = [*messages, {"role": "user", "content": said}]
                answer = language.chat(asked, stream=lambda text: print(text, end="", flush=True), **options)
            except UnicodeDecodeError as error:
                print(f"headway: that is not {error.encoding}; type it again", file=sys.stderr)
            except BadInput as error:
                print(f"headway: {' '.join(str(error).split())}", file=sys.stderr)
            else:
                print()
                messages = [*asked, {"role": "assistant", "content": answer}]
    print()
    return 0
