#!/usr/bin/env python3
"""Writes protobuf-1.37.tsv, the field numbers of Kubernetes' protobuf form.

usage: generate_protobuf.py API APIMACHINERY

The arguments are the directories of k8s.io/api and k8s.io/apimachinery v0.37.2 (Apache-2.0); the numbers are taken from
their Go struct tags. The table has a line `TYPE` for each struct that ../../kinds/facts/schema-1.37.tsv has or that one of
those embeds, and below it a line for each field, `<tab>NUMBER<tab>NAME<tab>FLAGS`. NAME is the name in JSON, or `@TYPE` for an
embedded struct whose fields are the outer one's. The flag `z` says that the zero value means unset.
"""

import os
import re
import sys

here = os.path.dirname(os.path.abspath(__file__))
api, machinery = sys.argv[1:3]
wanted = []
with open(os.path.join(here, "../../kinds/facts/schema-1.37.tsv")) as table:
    for line in table:
        if not line.startswith(("#", "\t")) and line.strip():
            wanted.append(line.split("\t")[0].strip())

META = "io.k8s.apimachinery.pkg.apis.meta.v1"
FIELD = re.compile(r"^\s+(?:(\w+)\s+)?([\w.*\[\]]+)\s+`(.*)`")
structs = {}


def read(path, package):
    current = None
    for line in open(path):
        begin = re.match(r"^type (\w+) struct \{", line)
        if begin:
            current = structs.setdefault(f"{package}.{begin.group(1)}", [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            field = FIELD.match(line)
            if not field:
                continue
            name, go, tags = field.groups()
            json = re.search(r'json:"([^"]*)"', tags)
            proto = re.search(r'protobuf:"([^"]*)"', tags)
            if not json or not proto:
                continue
            number = proto.group(1).split(",")[1]
            json_name, *options = json.group(1).split(",")
            if not json_name:
                short = go.lstrip("*").split(".")[-1]
                inside = META if go.startswith("metav1.") else package
                current.append((number, f"@{inside}.{short}", ""))
            else:
                zero = not go.startswith("*") and ("omitempty" in options or "omitzero" in options)
                current.append((number, json_name, "z" if zero else ""))


packages = sorted({name.rsplit(".", 1)[0] for name in wanted})
for package in packages:
    if package == META:
        directory = os.path.join(machinery, "pkg/apis/meta/v1")
    elif package.startswith("io.k8s.api."):
        directory = os.path.join(api, *package[len("io.k8s.api."):].split("."))
    else:
        continue
    for file in sorted(os.listdir(directory)):
        if file.endswith(".go") and not file.startswith("zz_") and not file.endswith("_test.go") and "generated" not in file:
            read(os.path.join(directory, file), package)

lines = []
done = set()
queue = [name for name in wanted if name in structs]
while queue:
    name = queue.pop(0)
    if name in done:
        continue
    done.add(name)
    lines.append((name, structs[name]))
    queue.extend(field[1][1:] for field in structs[name] if field[1].startswith("@") and field[1][1:] in structs)

with open(os.path.join(here, "protobuf-1.37.tsv"), "w") as out:
    out.write("# The field numbers of Kubernetes' protobuf form by type. Source: Go struct tags of k8s.io/api and\n")
    out.write("# k8s.io/apimachinery v0.37.2 (Apache-2.0). generate_protobuf.py writes this file and explains it.\n")
    for name, fields in sorted(lines):
        out.write(f"{name}\n")
        for number, field, flags in fields:
            out.write(f"\t{number}\t{field}\t{flags}".rstrip() + "\n")
