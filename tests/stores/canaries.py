"""What every store of ours does with what is left of its canaries."""

from datetime import timedelta

from archiver.model import Body
from archiver.stores.canary import canary_key
from archiver.testing.stores import keys


async def left_by_killed_processes_are_cleared(store):
    old, young = canary_key("", timedelta(hours=25)), canary_key("", timedelta(hours=23))
    # That of a listing's order has a folder.
    for key in (old, f"{old}-", f"{canary_key('', timedelta(days=400))}/a", young):
        await store.put(key, Body.of(b"archiver canary, left"))
    await store.put("_canar", Body.of(b"no canary"))
    await store.check()
    assert await keys(store, "_canar") == ["_canar", young]
    # The server may be another test's too.
    for key in ("_canar", young):
        await store.delete(key)
