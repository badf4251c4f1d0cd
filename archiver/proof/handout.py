"""What lies in each store for whoever wants to check it: the script, and a page that says how."""

from __future__ import annotations

from importlib.resources import files

_README = """\
This folder proves what the archive beside it holds: for each recorder and each day (UTC) which calls the recorder
listed, and what became of each. It holds no number, no name and no recorder's id.

Its owner is {origin}. The public key is

    {vkey}

but do not believe this file: ask the owner for the key in another way, or compare with what stands in your contract.

To check a copy of this store (the folder that holds the folder _proof), with Python 3.8 or newer and nothing else:

    python3 _proof/verify.py COPY VKEY --media

It prints a line for each problem, and last the days that it vouches for. Better take the script from the owner or from
the makers of archiver, and not from the copy either: who changes the one can change the other.

Each time, keep the newest file of log/checkpoint. Name it the next time, and nobody can have cut anything off:

    python3 verify.py COPY VKEY --media --expect-since THAT_FILE

Without Python, or without trust in the script: the page docs/proof.md of archiver shows the same by hand, with openssl,
ssh-keygen and sha256sum.
"""


def script() -> bytes:
    """The text of verify.py: the checker, one Python file that needs nothing else."""
    return (files("archiver.proof") / "verify.py").read_bytes()


def readme(origin: str, vkey: str) -> bytes:
    """The text of README.txt."""
    return _README.format(origin=origin, vkey=vkey).encode()
