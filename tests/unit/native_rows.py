"""Rows of pytest-benchmark that hold a block."""

from pytest_infer.storage import schema


def native(made, test=None):
    """Return a row of pytest-benchmark that holds a block."""
    name = f"t[{made['prompt']['name']}]"
    stats = {"median": 0.3815, "data": [0.381, 0.382]}
    fullname = test or f"bench/t.py::{name}"
    return {"group": "total", "name": name, "fullname": fullname, "stats": stats, "extra_info": {schema.KEY: made}}
