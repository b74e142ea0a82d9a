"""The process that renders chat templates: a script of its own, started with no more than minijinja in it.

Reads one JSON request a line, writes one JSON reply a line. Fuel bounds most templates; what fuel does not count
(printing a list that contains itself a million times over) runs into this process's own limits on processor time
and memory, and ends it.
"""

import datetime
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import minijinja


class Refused(Exception):
    """`raise_exception(...)` in a template: the model's author refuses the messages."""


def shown(value: Any) -> Any:
    """A value as Jinja2 prints it: Python's words for none, true and false, and Python's lists."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def to_json(value: Any, **options: Any) -> str:
    """The `tojson` filter that chat templates are written for: Python's own spacing, nothing escaped."""
    indent = options.get("indent")
    return json.dumps(
        value,
        ensure_ascii=bool(options.get("ensure_ascii", False)),
        indent=indent,
        separators=tuple(options["separators"]) if options.get("separators") else None,
        sort_keys=bool(options.get("sort_keys", False)),
    )


def now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def raise_exception(message: str) -> None:
    raise Refused(message)


def environment(fuel: int) -> minijinja.Environment:
    made = minijinja.Environment(
        fuel=fuel,
        pycompat=True,
        trim_blocks=True,
        lstrip_blocks=True,
        debug=False,
        auto_escape_callback=lambda name: False,
        finalizer=shown,
    )
    made.add_filter("tojson", to_json)
    made.add_global("raise_exception", raise_exception)
    made.add_global("strftime_now", now)
    return made


def answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        text = environment(request["fuel"]).render_str(request["template"], **request["values"])
    except Refused as error:
        return {"refused": str(error)}
    except minijinja.TemplateError as error:
        if isinstance(error.__cause__, Refused):
            return {"refused": str(error.__cause__)}
        return {"error": f"{error.message} (line {error.line})"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if len(text) > request["longest"]:
        return {"error": f"it renders more than {request['longest']} characters"}
    return {"text": text}


def main() -> None:
    room, seconds = int(sys.argv[1]), float(sys.argv[2])
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, mapped + room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        reply = json.dumps(answer(request)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
