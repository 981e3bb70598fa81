"""500 requests of a seeded generator that no client should send."""

import random
import resource
import struct
import zlib

import numpy as np
import pytest
from random_models import make_pixels
from small_uploads import encoded, png

COUNT = 500
JPEG, PNG = encoded(make_pixels(64, 64), "JPEG"), png(64, 64)


def bomb(rng):
    """A PNG whose header declares more pixels than any memory holds."""
    size = rng.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 0)])
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + rng.randbytes(rng.randrange(200))


def flipped(rng):
    """An image file with wrong bytes in it."""
    content = bytearray(rng.choice([JPEG, PNG]))
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


CONTENTS = (
    lambda rng: rng.randbytes(rng.randrange(2000)),
    lambda rng: JPEG[: rng.randrange(len(JPEG))],
    lambda rng: PNG[: rng.randrange(len(PNG))],
    flipped,
    bomb,
    lambda rng: b"",
    lambda rng: "no image, but words".encode(rng.choice(["utf-8", "utf-16", "utf-7"])),
    lambda rng: (
        rng.choice([b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF"])
        + rng.randbytes(rng.randrange(300))
    ),
    lambda rng: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    lambda rng: PNG,
)
NAMES = (
    lambda rng: "a" * 1_000_000,
    lambda rng: ",".join(map(str, range(5000))),
    lambda rng: "".join(chr(rng.randrange(1, 0xD800)) for _ in range(30)),
    lambda rng: "\udc80\ud800",
    lambda rng: "dataset:lvis_v1_val",
    lambda rng: "/etc/passwd.txt, ../../a.json",
    lambda rng: ",,,",
    lambda rng: "\x00",
    lambda rng: "cat",
)
NUMBERS = ("nan", "inf", "-1", "1e999", "", "x", "0.5", "٣", "1" * 5000, "0x1p3")
TYPES = ("multipart/form-data; boundary=B", "multipart/form-data", "application/json", "",
         "multipart/form-data; boundary=B; charset=utf-7", "image/png",
         "multipart/form-data; boundary=" + "B" * 300)  # fmt: skip


def body(rng):
    """A form, of which a part may be cut off or missing."""
    parts = [
        ("file", rng.choice(CONTENTS)(rng), '; filename="' + rng.choice(["a.png", "", "../x"]))
    ]
    for field in ("names", "caption"):
        parts.append((field, rng.choice(NAMES)(rng).encode("utf-8", "surrogatepass"), None))
    for field in ("threshold", "topk"):
        if rng.random() < 0.3:
            parts.append((field, rng.choice(NUMBERS).encode(), None))
    rng.shuffle(parts)
    if rng.random() < 0.2:
        parts.pop()
    made = b""
    for field, content, file_name in parts:
        extra = "" if file_name is None else file_name + '"'
        made += f'--B\r\ncontent-disposition: form-data; name="{field}"{extra}\r\n\r\n'.encode()
        made += content + b"\r\n"
    made += b"--B--\r\n"
    return made[: rng.randrange(len(made))] if rng.random() < 0.1 else made


@pytest.mark.timeout(120)
def test_nothing_makes_it_fail(client, capfd):
    rng, seen = random.Random(7), {}
    client.post("/v1/predict", files={"file": PNG}, data={"names": "cat"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(COUNT):
        kind = TYPES[0] if rng.random() < 0.8 else rng.choice(TYPES)
        path = rng.choice(["/v1/predict", "/v1/predict", "/v1/ground"])
        answer = client.post(path, content=body(rng), headers={"content-type": kind})
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert list(answer.json()) == ["error"] and len(answer.json()["error"]) < 1000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KiB"
    assert {200, 400, 413, 415, 422} <= set(seen), seen
    assert "Traceback" not in "".join(capfd.readouterr())
    again = client.post("/v1/predict", files={"file": PNG}, data={"names": "cat"})
    assert again.status_code == 200 and np.isfinite(again.json()["scores"]).all()
