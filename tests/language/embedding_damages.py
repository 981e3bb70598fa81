"""Ways in which an embedding file and its manifest can be wrong."""

import json


def edit_manifest(path, **changes):
    file = path.with_name(path.name + ".json")
    manifest = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(manifest))


def damage_bytes(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": damage_bytes,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "emptied": lambda path: path.write_bytes(b""),
    "no manifest": lambda path: path.with_name(path.name + ".json").unlink(),
    "empty manifest": lambda path: path.with_name(path.name + ".json").write_text(""),
    "manifest is a list": lambda path: path.with_name(path.name + ".json").write_text("[]"),
    "no encoder": lambda path: edit_manifest(path, encoder_id=None),
    "other encoder": lambda path: edit_manifest(path, encoder_id="clip@222222222222"),
    "other names": lambda path: edit_manifest(path, names=["owl", "cat", "Bald_eagle"]),
    "too few names": lambda path: edit_manifest(path, names=["cat"]),
    "other templates": lambda path: edit_manifest(path, templates=["{}"]),
    "other version": lambda path: edit_manifest(path, version=99),
}
