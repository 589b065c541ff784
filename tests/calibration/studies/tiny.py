"""A study of seconds: a BERT that reads letters, on word similarity."""

import sqlite3


def config(folder, **changes):
    values = {
        "title": "Letters",
        "model": str(folder),
        "task": "wordsim",
        "grid": {
            "hardware.adc.bits": [4, 8],
            "pattern": ["dense", "window(2) | sinks(1)"],
            "recipe": [None, "fast"],
            "time": ["1h", "1d"],
            "seed": "0..1",
        },
    }
    return {**values, **changes}


def scores(store):
    """Every score of a store by the cell's identity."""
    with sqlite3.connect(store) as on:
        rows = on.execute("SELECT id, arm, metric, value FROM scores JOIN cells ON cell = key ORDER BY id, arm, metric")
        return rows.fetchall()


def column(store, query):
    with sqlite3.connect(store) as on:
        return [row[0] for row in on.execute(query)]
