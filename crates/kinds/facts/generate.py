#!/usr/bin/env python3
"""Writes schema-1.37.tsv: the structure of the v1.37 API, without its texts.

Reads the OpenAPI documents of k8s.io/kubernetes and the Go sources of k8s.io/api and k8s.io/apimachinery from the Go
module cache (`go mod download k8s.io/kubernetes@v1.37.2 k8s.io/api@v0.37.2 k8s.io/apimachinery@v0.37.2` fills it).
Run as `./generate.py > schema-1.37.tsv`.

One line for a type: its name and attributes. Below it one line for a field, behind a tab: name, shape, attributes.
A shape is string, int32, int64, number, bool, bytes, quantity, int-or-string, time, micro-time, any, a type's name,
`[]` and a shape (a list), or `{}` and a shape (a map). Attributes are separated by blanks:
  type   atomic           merged as a whole
         gvk=G/V/K        the kind that it is
  field  required
         list=T           atomic, set or map
         keys=A,B         the keys of a list of type map
         atomic           a map or struct merged as a whole
         merge-key=K      of strategic merge
         patch=S,S        strategies of strategic merge
         go=T             the Go type in decoding errors, where the shape does not tell it
         via=T            the embedded Go struct that has the field
         pointer          nothing and the zero value are different
         default=JSON     where it is not the zero value
         zero=JSON        what Go writes where it is not set, if it writes something
"""
import json
import pathlib
import re
import subprocess

RELEASE = {"k8s.io/kubernetes": "v1.37.2", "k8s.io/api": "v0.37.2", "k8s.io/apimachinery": "v0.37.2"}
DOCUMENTS = """
    api apis api__v1 apis__apps__v1 apis__authentication.k8s.io__v1 apis__authorization.k8s.io__v1 apis__autoscaling__v1
    apis__coordination.k8s.io__v1 apis__discovery.k8s.io__v1 apis__events.k8s.io__v1 apis__networking.k8s.io__v1
    apis__node.k8s.io__v1 apis__policy__v1 apis__rbac.authorization.k8s.io__v1 apis__scheduling.k8s.io__v1
""".split()
ROOTS = re.compile(
    r"io\.k8s\.(api\.(core|apps|authentication|authorization|coordination|discovery|events|networking|node|rbac|scheduling)\.v1"
    r"\.|api\.autoscaling\.v1\.Scale|api\.policy\.v1\.Eviction|apimachinery\.pkg\.apis\.meta\.v1\.)"
)
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
LEAVES = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any",
    META + "Time": "time",
    META + "MicroTime": "micro-time",
    META + "FieldsV1": "any",
    META + "Patch": "any",
}
GO_LEAVES = {
    "bytes": "[]uint8", "quantity": "resource.Quantity", "int-or-string": "intstr.IntOrString", "time": "v1.Time",
    "micro-time": "v1.MicroTime", "number": "float64",
}


def module(path):
    out = subprocess.run(
        ["go", "mod", "download", "-json", f"{path}@{RELEASE[path]}"], check=True, capture_output=True, text=True
    ).stdout
    return pathlib.Path(json.loads(out)["Dir"])


def schemas():
    folder = module("k8s.io/kubernetes") / "api/openapi-spec/v3"
    out = {}
    for name in DOCUMENTS:
        out |= json.loads((folder / f"{name}_openapi.json").read_text())["components"]["schemas"]
    return out


def reference(node):
    for candidate in [node] + node.get("allOf", []):
        if "$ref" in candidate:
            return candidate["$ref"].removeprefix("#/components/schemas/")
    return None


def shape(node):
    target = reference(node)
    if target:
        return LEAVES.get(target, target)
    match node.get("type"), node.get("format"):
        case "array", _:
            return "[]" + shape(node["items"])
        case "object", _ if "additionalProperties" in node:
            return "{}" + shape(node["additionalProperties"])
        case "string", "byte":
            return "bytes"
        case "string", None:
            return "string"
        case "integer", "int32" | "int64" as width:
            return width
        case "number", _:
            return "number"
        case "boolean", _:
            return "bool"
    raise ValueError(f"no shape for {node}")


def referred(text):
    name = re.sub(r"^(\[\]|\{\})+", "", text)
    return name if name.startswith("io.k8s.") else None


def go_structs(folder):
    """The fields of each struct by JSON name: (type, embedded struct or None). `folder` is one package."""
    structs = {}
    for source in sorted(folder.glob("*types*.go")):
        for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", source.read_text(), re.M | re.S):
            structs[name] = re.findall(r"^\t(?:(\w+)\s+)?(\S+)\s+`[^`]*?json:\"([^\",]*)([^\"]*)", body, re.M)
    package = folder.name

    def qualified(text):
        text = text.lstrip("*")
        for prefix in ("[]", "map[string]"):
            if text.startswith(prefix):
                return prefix + qualified(text[len(prefix):])
        if m := re.fullmatch(r"map\[(\w+)\](.*)", text):
            return f"map[{qualified(m[1])}]{qualified(m[2])}"
        if "." in text:
            return re.sub(r"^(metav1|corev1|apiv1|v1)\.", "v1.", text)
        return f"{package}.{text}" if text[:1].isupper() else {"byte": "uint8"}.get(text, text)

    def fields(name, via=None):
        out = {}
        for field, type_, json_name, options in structs.get(name, []):
            if json_name:
                out[json_name] = (qualified(type_), via, (type_, options.split(",")))
            elif type_.endswith("TypeMeta"):
                out |= {key: ("string", "TypeMeta", None) for key in ("apiVersion", "kind")}
            elif not field:
                embedded = type_.split(".")[-1]
                out |= {k: (t, embedded, written) for k, (t, _, written) in fields(embedded).items()}
        return out

    return {name: fields(name) for name in structs}


def go_of_shape(text):
    if text.startswith("[]"):
        return "[]" + go_of_shape(text[2:])
    if text.startswith("{}"):
        return "map[string]" + go_of_shape(text[2:])
    if text.startswith("io.k8s."):
        return ".".join(text.split(".")[-2:])
    return GO_LEAVES.get(text, text)


def zero(text, written):
    """What Go's encoder writes for a field that is not set: `omitempty` never leaves out a struct that is held by value."""
    if written is None:
        return None
    type_, options = written
    by_value = not type_.startswith(("*", "[]", "map["))
    is_struct = text.startswith("io.k8s.") or text in ("time", "micro-time", "quantity", "int-or-string", "any")
    if "omitzero" in options or "omitempty" in options and not (by_value and is_struct):
        return None
    if not by_value or text in ("time", "micro-time", "any") or text.startswith(("[]", "{}")):
        return "null"
    if text.startswith("io.k8s."):
        return "{}"
    return {"string": '""', "bytes": "null", "bool": "false", "quantity": '"0"'}.get(text, "0")


def attributes(node, text, required, go):
    out = ["required"] if required else []
    for key, label in [("list-type", "list"), ("patch-merge-key", "merge-key"), ("patch-strategy", "patch")]:
        if value := node.get(f"x-kubernetes-{key}"):
            out.append(f"{label}={value}")
    if keys := node.get("x-kubernetes-list-map-keys"):
        out.append(f"keys={','.join(keys)}")
    if node.get("x-kubernetes-map-type") == "atomic":
        out.append("atomic")
    go_type, via, written = go
    out += ["pointer"] if written and written[0].startswith("*") else []
    if go_type and text != "any" and go_type != go_of_shape(text):
        out.append(f"go={go_type}")
    if via:
        out.append(f"via={via}")
    unset = zero(text, written)
    # A default that is the zero value says something where that value is not written.
    if node.get("default") not in ((None, {}) if unset in (None, "null") else (None, {}, "", 0, False)):
        out.append(f"default={json.dumps(node['default'], separators=(',', ':'))}")
    if unset is not None:
        out.append(f"zero={unset}")
    return " ".join(out)


def main():
    all_types = schemas()
    go = {}
    for folder in sorted(module("k8s.io/api").glob("*/v1")):
        go |= {f"io.k8s.api.{folder.parent.name}.v1.{k}": v for k, v in go_structs(folder).items()}
    meta = module("k8s.io/apimachinery") / "pkg/apis/meta/v1"
    go |= {META + k: v for k, v in go_structs(meta).items()}

    wanted = {name for name in all_types if ROOTS.match(name)} - LEAVES.keys()
    queue = sorted(wanted)
    for name in queue:
        for node in all_types[name].get("properties", {}).values():
            target = referred(shape(node))
            if target and target not in wanted:
                wanted.add(target)
                queue.append(target)

    print("# The structure of the v1.37 API by type and field. Source: k8s.io/kubernetes v1.37.2 api/openapi-spec/v3 and the")
    print("# Go types of k8s.io/api and k8s.io/apimachinery v0.37.2 (Apache-2.0). generate.py writes this file and explains it.")
    for name in sorted(wanted):
        node = all_types[name]
        words = ["atomic"] if node.get("x-kubernetes-map-type") == "atomic" else []
        kinds = node.get("x-kubernetes-group-version-kind", [])
        if len(kinds) == 1:
            words.append("gvk={group}/{version}/{kind}".format(**kinds[0]))
        print("\t".join([name, " ".join(words)]).rstrip())
        for field, child in sorted(node.get("properties", {}).items()):
            text = shape(child)
            required = field in node.get("required", [])
            words = attributes(child, text, required, go.get(name, {}).get(field, (None, None, None)))
            print(f"\t{field}\t{text}\t{words}".rstrip())


main()
