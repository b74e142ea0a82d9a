"""`Ledger`: every piece of evidence made here, in one SQLite file that several processes may use at once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from headway.core.errors import BadFile, BadInput, HeadwayError, Lacking
from headway.core.evidence import Evidence
from headway.core.files import atomic_write_bytes, make_folder, sha256_of, state_folder
from headway.core.jsontext import json_text, parse_json

BUSY_S = 30.0
_MIGRATIONS = (
    """
    CREATE TABLE evidence (
        id TEXT PRIMARY KEY,
        experiment TEXT NOT NULL,
        subject TEXT NOT NULL,
        target TEXT NOT NULL,
        made_at TEXT NOT NULL,
        met INTEGER NOT NULL,
        document TEXT NOT NULL
    );
    CREATE INDEX evidence_by_subject ON evidence (subject, made_at);
    """,
    "ALTER TABLE evidence ADD COLUMN digest TEXT",
)
"""Step i brings a ledger from version i to i + 1; a released step is never changed."""


class Ledger:
    """Append and query; WAL mode, one short transaction per call.

    A ledger that cannot be written is refused at once, so that nobody measures for minutes first; unless it is
    `read_only`: then nothing is written, not even a newer version of the tables.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only
        if not read_only:
            make_folder(path.parent)
        with self._connection() as connection:
            if read_only:
                self._check_version(connection)
            else:
                self._migrate(connection)
                connection.execute("BEGIN IMMEDIATE")  # alone it only reads where the file cannot be written
                connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
                connection.rollback()

    @classmethod
    def open(cls) -> Ledger:
        """The user's ledger, to be written."""
        return cls(state_folder() / "ledger.sqlite3")

    @classmethod
    def open_to_read(cls) -> Ledger:
        """The user's ledger; another user's, under a shared HEADWAY_HOME, need only be readable."""
        path = state_folder() / "ledger.sqlite3"
        owned = all(os.access(place, os.W_OK, effective_ids=True) for place in (path.parent, path) if place.exists())
        return cls(path, read_only=path.exists() and not owned)

    def append(self, evidence: Evidence) -> None:
        """Keep a piece of evidence; one that is there already (same id) is left as it is."""
        document = json_text(evidence.to_json(), indent=None)
        row = (
            evidence.id,
            evidence.experiment,
            evidence.subject,
            evidence.target.get("fingerprint", ""),
            evidence.made_at,
            int(evidence.met),
            document,
            sha256_of(document),
        )
        with self._connection() as connection, connection:
            connection.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def latest(self, subject: str, experiment: str = "prove", target: str | None = None) -> Evidence | None:
        """The last evidence about a subject (a system's slug, a model's name), on any or on one target."""
        documents = self._documents({"subject": subject, "experiment": experiment, "target": target}, last=True)
        return self._evidence(documents[0]) if documents else None

    def all(
        self, subject: str | None = None, experiment: str | None = None, target: str | None = None
    ) -> list[Evidence]:
        """Evidence in the order it was made, of one subject, experiment or target, or of all."""
        wanted = {"subject": subject, "experiment": experiment, "target": target}
        return [self._evidence(document) for document in self._documents(wanted)]

    def export(self, path: str | Path) -> int:
        """Write everything as one JSON list, in the order it was made; gives how many pieces that is."""
        documents = self._documents({})
        atomic_write_bytes(path, b"[" + b",".join(documents) + b"]\n")
        return len(documents)

    def _documents(self, wanted: Mapping[str, str | None], last: bool = False) -> list[bytes]:
        given = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in given) or "1"
        order = "made_at DESC, rowid DESC LIMIT 1" if last else "made_at, rowid"
        with self._connection() as connection:
            rows = connection.execute(
                f"SELECT CAST(document AS BLOB), digest FROM evidence WHERE {where} ORDER BY {order}",
                list(given.values()),
            ).fetchall()
        for document, digest in rows:
            known = digest is None or sha256_of(document or b"") == digest  # none: written before digests were kept
            if document is None or not known:
                raise BadFile(self.path, 0, "evidence was changed after it was written", self._mend())
        return [document for document, _ in rows]

    def _evidence(self, document: bytes) -> Evidence:
        return Evidence.from_json(parse_json(document, self.path), self.path)

    def check(self) -> None:
        """Raise `BadFile` unless SQLite finds the whole file sound."""
        with self._connection() as connection:
            (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            raise BadFile(self.path, 0, f"the ledger is damaged: {answer}", self._mend())

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as connection:
                if self.read_only:
                    yield connection
                    return
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error
        except UnicodeDecodeError as error:  # damaged text, or an error message that quotes it
            raise BadFile(self.path, 0, "this is no ledger: text that is not UTF-8", self._mend()) from error

    def _connect(self) -> sqlite3.Connection:
        if not self.read_only:
            return sqlite3.connect(self.path, timeout=BUSY_S)
        # Beside a log of writes its index is read along; without one nobody is writing, and none can be made here.
        written = self.path.with_name(f"{self.path.name}-wal").exists()
        mode = "mode=ro" if written else "mode=ro&immutable=1"
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?{mode}", timeout=BUSY_S, uri=True)

    def _check_version(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != len(_MIGRATIONS):
            what = f"{self.path}: version {version}, not {len(_MIGRATIONS)}, and you may not write it"
            raise BadInput(what, "let its owner run: headway report --ledger")

    def _explained(self, error: sqlite3.DatabaseError) -> HeadwayError:
        name = getattr(error, "sqlite_errorname", "")
        what = " ".join(str(error).split())[:200]
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
            return BadInput(f"{self.path}: {what}", "choose a folder you may write, or set HEADWAY_HOME to one")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
            return Lacking(f"{self.path}: {what} for {BUSY_S:.0f} s", "wait for the other headway and run again")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM")):
            return Lacking(f"{self.path}: {what}", "free disk space there, or check the disk")
        return BadFile(self.path, 0, f"this is no ledger: {what}", self._mend())

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the file to this version, one step after another, each in its own transaction."""
        while True:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < 0:
                raise BadFile(self.path, 0, f"this is no ledger: version {version}", self._mend())
            if version > len(_MIGRATIONS):
                raise BadInput(f"{self.path}: version {version} is newer than {len(_MIGRATIONS)}", "update headway")
            if version == len(_MIGRATIONS):
                return
            connection.execute("BEGIN IMMEDIATE")
            (now,) = connection.execute("PRAGMA user_version").fetchone()
            if now == version:  # nobody else took this step meanwhile
                for statement in _MIGRATIONS[version].split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.commit()

    def _mend(self) -> str:
        return f"move {self.path} away; a new one is begun"
