"""Text-to-SQL as a workflow of calls to a language model, over sqlite3: tables, draft, run, revise on error, vote.

    retriever: which tables the question needs      candidate: two drafts, side by side, from two prompts
    revise: with the error, while a draft fails     vote: the drafts whose results are equal win; evaluate breaks ties

SQL is really run, read-only and bounded. Stages are named as in CHESS (arXiv 2405.16755).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.core.errors import BadInput
from headway.llm.language_model import LanguageModel
from headway.serving.dispatch.base import Call
from headway.serving.request import Request
from headway.serving.workflow import Ask, Flow, Stage

TEMPLATE = ("retriever", "candidate", "revise", "revise", "evaluate")
"""The stages that a question is expected to have before any is known."""
REVISIONS = 2
"""Of one draft, at most."""
ROWS = 200
STEPS = 200_000
"""Instructions of sqlite that one statement may take."""
BYTES = 1_000_000
"""Of one value, at most."""
TEXT = 600
"""Characters of SQL that are run."""


@dataclass(frozen=True)
class Lengths:
    """Tokens that each stage may answer with."""

    retriever: int = 6
    candidate: int = 40
    revise: int = 24
    evaluate: int = 4


@dataclass(frozen=True)
class Result:
    """What a statement gave: sorted rows, or an error."""

    rows: tuple[tuple[str, ...], ...] | None
    error: str = ""


@dataclass(frozen=True)
class Answer:
    """Of a question."""

    sql: str
    result: Result
    revisions: int
    votes: int
    """Drafts with this result."""


# Databases

_TABLES = {
    "customers": ("name TEXT", "city TEXT", "age INTEGER"),
    "orders": ("customer_id INTEGER", "amount REAL", "day TEXT"),
    "products": ("title TEXT", "price REAL", "stock INTEGER"),
    "employees": ("name TEXT", "salary REAL", "department TEXT"),
    "rooms": ("number INTEGER", "beds INTEGER", "price REAL"),
}
_WORDS = ("Oslo", "Lima", "Kyoto", "Accra", "Ada", "Ben", "Cleo", "Dario", "tea", "lamp", "sales", "legal")


def make_database(path: str | Path, seed: int = 0, rows: int = 40) -> None:
    """A database of five tables with random rows at `path`, a new file."""
    random = np.random.default_rng(seed)
    connection = sqlite3.connect(path)
    with connection:
        for table, columns in _TABLES.items():
            connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {', '.join(columns)})")
            marks = ", ".join("?" * len(columns))
            names = ", ".join(column.split()[0] for column in columns)
            for _ in range(rows):
                values = [_value(random, column) for column in columns]
                connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)
    connection.close()


def _value(random: np.random.Generator, column: str) -> str | int | float:
    name, kind = column.split()
    if kind == "TEXT":
        return f"2024-0{random.integers(1, 10)}-11" if name == "day" else str(random.choice(_WORDS))
    return int(random.integers(1, 90)) if kind == "INTEGER" else round(float(random.uniform(1, 900)), 2)


def make_questions(count: int, seed: int = 0) -> list[str]:
    """Questions that the tables can answer."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        table = str(random.choice(list(_TABLES)))
        column = str(random.choice(_TABLES[table])).split()[0]
        found.append(
            str(
                random.choice(
                    [
                        f"How many {table} are there?",
                        f"What is the largest {column} of all {table}?",
                        f"List the {column} of the {table}, in order.",
                        f"How many different values of {column} do the {table} have?",
                        f"Which {table} have a {column} that is above the average?",
                    ]
                )
            )
        )
    return found


class Database:
    """A read-only connection to a database."""

    def __init__(self, path: str | Path) -> None:
        """Raises `BadInput` for a file that is no database."""
        try:
            self._connection = sqlite3.connect(
                f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
            )
            rows = self._connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        except sqlite3.Error as error:
            raise BadInput(f"{path}: {error}", "give a file of sqlite3") from None
        if not rows:
            raise BadInput(f"{path} holds no table", "give a database with tables")
        self.tables: dict[str, str] = dict(rows)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, BYTES)
        self._connection.set_authorizer(_only_reading)

    def run(self, sql: str) -> Result:
        """One statement, read-only, within `STEPS` instructions and `ROWS` rows."""
        left = STEPS // 1000

        def over() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        self._connection.set_progress_handler(over, 1000)
        try:
            cursor = self._connection.execute(sql)
            rows = cursor.fetchmany(ROWS)
            if cursor.description is None:
                return Result(None, "no SELECT")
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return Result(None, str(error)[:120])
        return Result(tuple(sorted(tuple(repr(value) for value in row) for row in rows)))

    def close(self) -> None:
        self._connection.close()


_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def _only_reading(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


# The workflow

_PROMPTS = {
    "retriever": (
        "Name the tables of the database that a question needs.\nQuestion: How old is the oldest customer?\n"
        "Tables: customers\n",
    ),
    "candidate": (
        "Translate questions to SQL for sqlite. Answer with one SELECT statement.\n"
        "Question: How many customers live in Oslo?\nSQL: SELECT COUNT(*) FROM customers WHERE city = 'Oslo';\n"
        "Question: What is the highest salary?\nSQL: SELECT MAX(salary) FROM employees;\n",
        "You write SQL step by step: choose the table, then the columns, then the conditions.\n"
        "Question: Which products cost more than 10?\nSQL: SELECT title FROM products WHERE price > 10;\n",
    ),
    "revise": (
        "A statement of SQL failed. Write it again without the error.\n"
        "SQL: SELECT nme FROM customers;\nError: no such column: nme\nSQL: SELECT name FROM customers;\n",
    ),
    "evaluate": ("Which statement answers the question, 1 or 2?\n",),
}
"""Templates: what all calls of one prompt begin with."""


class Text2SQL:
    """Makes the workflow of a question."""

    def __init__(self, model: LanguageModel, database: Database, lengths: Lengths | None = None) -> None:
        """model: whose tokenizer reads and writes; the engines must share it."""
        self.model, self.database, self.lengths = model, database, lengths or Lengths()
        self._prefixes: dict[str, list[int]] = {}

    def flow(self, question: str) -> Flow:
        """The stages of a question; its value is an `Answer`."""
        calls = yield self._stage("retriever", [f"Tables there are: {', '.join(self.database.tables)}\n{question}\n"])
        said = self._text(calls[0])
        named = [table for table in self.database.tables if table in said] or list(self.database.tables)
        schema = "\n".join(self.database.tables[table] for table in named)
        asked = f"{schema}\nQuestion: {question}\nSQL: SELECT"
        calls = yield self._stage("candidate", [asked, asked], (0, 1))
        drafts = [statement(self._text(call), "SELECT") for call in calls]
        results = [self.database.run(sql) for sql in drafts]
        revisions = 0
        for _ in range(REVISIONS):
            for at, result in enumerate(results):
                if result.error:
                    text = f"{schema}\nSQL: {drafts[at]}\nError: {result.error}\nSQL: SELECT"
                    calls = yield self._stage("revise", [text])
                    drafts[at] = statement(self._text(calls[0]), "SELECT")
                    results[at] = self.database.run(drafts[at])
                    revisions += 1
        chosen = vote(results)
        if chosen is None:
            text = f"{question}\n1: {drafts[0]}\n2: {drafts[1]}\nAnswer:"
            calls = yield self._stage("evaluate", [text])
            chosen = 1 if "2" in self._text(calls[0]) else 0
        votes = sum(result.rows is not None and result == results[chosen] for result in results)
        return Answer(drafts[chosen], results[chosen], revisions, votes)

    def _stage(self, name: str, texts: Sequence[str], templates: Sequence[int] = (0,)) -> Stage:
        output = getattr(self.lengths, name)
        asks = []
        for text, which in zip(texts, templates, strict=True):
            key = f"{name}/{which}"
            if key not in self._prefixes:
                self._prefixes[key] = self.model.encode(_PROMPTS[name][which])
            prefix = self._prefixes[key]
            tokens = prefix + self.model.encode(text, start=False)
            room = self.model.architecture.context - output
            tokens = tokens[:room]
            request = Request(tokens, output, ignore_end=False)
            asks.append(Ask(len(tokens), output, min(len(prefix), len(tokens)), request, key))
        return Stage(name, tuple(asks))

    def _text(self, call: Call) -> str:
        return str(self.model.tokenizer.decode(call.answer))


def statement(text: str, begin: str = "") -> str:
    """The first statement of a model's text: its first paragraph up to a semicolon."""
    first = (begin + text).split(";")[0].split("\n\n")[0].split("\nQuestion")[0]
    return " ".join(first.replace("\x00", "").split())[:TEXT]


def vote(results: Sequence[Result]) -> int | None:
    """The first result that most others equal; None: those that ran disagree, or none ran."""
    ran = [at for at, result in enumerate(results) if result.rows is not None]
    if not ran:
        return None
    counts = {at: sum(results[at].rows == results[other].rows for other in ran) for at in ran}
    best = max(ran, key=lambda at: (counts[at], -at))
    return best if len(ran) == 1 or counts[best] > len(ran) / 2 else None
