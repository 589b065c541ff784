"""Tables of a store and how older stores become newer ones. The version is SQLite's ``user_version``."""

MIGRATIONS = (
    """
    CREATE TABLE studies (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, config TEXT NOT NULL, axes TEXT NOT NULL, planned TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE setups (id TEXT PRIMARY KEY, fields TEXT NOT NULL, counts TEXT) WITHOUT ROWID;
    CREATE TABLE settings (
        study TEXT NOT NULL REFERENCES studies, position INTEGER NOT NULL, axes TEXT NOT NULL,
        setup TEXT NOT NULL REFERENCES setups, digital TEXT NOT NULL REFERENCES setups,
        PRIMARY KEY (study, position)
    ) WITHOUT ROWID;
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY, study TEXT NOT NULL REFERENCES studies, began TEXT NOT NULL, ended TEXT,
        provenance TEXT NOT NULL
    );
    CREATE TABLE cells (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, setup TEXT NOT NULL REFERENCES setups, seconds REAL,
        seed INTEGER, status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'done', 'failed')),
        lost INTEGER NOT NULL DEFAULT 0, reason TEXT, trace TEXT, run INTEGER REFERENCES runs, ended TEXT, took REAL
    );
    CREATE INDEX cells_by_setup ON cells (setup);
    CREATE TABLE members (
        study TEXT NOT NULL REFERENCES studies, cell INTEGER NOT NULL REFERENCES cells, PRIMARY KEY (study, cell)
    ) WITHOUT ROWID;
    CREATE TABLE scores (
        cell INTEGER NOT NULL REFERENCES cells, arm TEXT NOT NULL, metric TEXT NOT NULL, value REAL,
        PRIMARY KEY (cell, arm, metric)
    ) WITHOUT ROWID;
    """,
    # What a row and the rows below it held when they were written, as a hash: SQLite finds damaged pages, not values.
    """
    ALTER TABLE studies ADD COLUMN seal TEXT;
    ALTER TABLE setups ADD COLUMN seal TEXT;
    ALTER TABLE runs ADD COLUMN seal TEXT;
    ALTER TABLE cells ADD COLUMN seal TEXT;
    """,
)
"""What takes a store from version ``k`` to ``k + 1``; a new store gets them all. Add to the end, change none."""
