#!/usr/bin/env python3
"""Writes descriptions-1.37.tsv.gz, the texts that `kubectl explain` shows.

usage: generate_descriptions.py DIRECTORY

DIRECTORY is api/openapi-spec/v3 of kubernetes v1.37.2 (Apache-2.0). The table has a line for each type that the server's
kinds reach, `TYPE<tab>DESCRIPTION`, and below it a line for each field, `<tab>FIELD<tab>DESCRIPTION`. Tabs and line breaks
in a description are written \\t and \\n. What is reached is what ../../kinds/facts/schema-1.37.tsv has.
"""

import glob
import gzip
import json
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
wanted = {}
with open(os.path.join(here, "../../kinds/facts/schema-1.37.tsv")) as table:
    for line in table:
        if line.startswith("#") or not line.strip():
            continue
        cells = line.rstrip("\n").split("\t")
        if cells[0]:
            fields = wanted.setdefault(cells[0], [])
        else:
            fields.append(cells[1])

schemas = {}
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.json"))):
    with open(path) as document:
        schemas.update(json.load(document).get("components", {}).get("schemas", {}))


def cell(schema):
    return schema.get("description", "").replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


lines = []
for name in sorted(wanted):
    schema = schemas.get(name, {})
    lines.append(f"{name}\t{cell(schema)}")
    for field in sorted(wanted[name]):
        lines.append(f"\t{field}\t{cell(schema.get('properties', {}).get(field, {}))}")

with open(os.path.join(here, "descriptions-1.37.tsv.gz"), "wb") as out:
    # No time and no name in the header: the same input gives the same file.
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9, mtime=0, filename="") as packed:
        packed.write(("\n".join(lines) + "\n").encode())
