import time, structlog
from tests import test_outages as t
from tests.test_outages import *
T=time.monotonic
async def test_w(tmp_path, database):
    with servers.apache() as server:
        sim = a_recorder(calls=CALLS, live=True, longest=2.0)
        stores = {"near": {"kind": "file", "path": str(tmp_path / "near")}, "far": dav_table(server, timeout="5s")}
        async with archiving(tmp_path, database, sim, stores=stores, timeout="5s") as rig:
            hasten(rig.archive)
            async with rig.running() as at_work:
                await reached(rig, CALLS // 4)
                await asyncio.to_thread(server.stop)
                b=T(); print("stopped")
                await asyncio.sleep(2.0)
                await asyncio.to_thread(server.start)
                print("started", T()-b)
                async def mon():
                    while True:
                        print("MON", round(T()-b,2), await archived(rig), at_work.engine.busy, rig.feed.health.probing, rig.archive.outlets["far"].health, flush=True)
                        await asyncio.sleep(0.5)
                m=asyncio.create_task(mon())
                await reached(rig, CALLS)
                m.cancel()
