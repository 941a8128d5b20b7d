"""A Python client with bleak in the place of kinara-gatewayd: the same wearable, the same load, the same BlueZ.

usage: peer.py PATH ADDRESS drain|hold     PATH is the bonded device's D-Bus path. Prints one line of JSON and ends
(drain), or stays connected and subscribed for as long as it lives (hold)."""

import asyncio
import json
import resource
import struct
import sys
import time

from bleak import BleakClient
from bleak.backends.device import BLEDevice

UUID = "6b6900%02x-4e61-5261-8b01-7a1c09d54f2e"
STREAM, BACKLOG, CONTROL = (UUID % number for number in (2, 3, 4))
# Operations of `control`, and a window as kinara-gatewayd's.
ACK, START_BACKLOG, STREAM_ON, WINDOW = 4, 6, 7, 100
# Acknowledged by so many; the backlog has ended when nothing came for so long.
ACK_EVERY, QUIET_S = 20, 4.0


class Peer:
    def __init__(self, path, address):
        self.device = BLEDevice(address, None, {"path": path, "props": {"Address": address}}, 0)
        self.request = 0
        self.seen = []
        self.last = time.monotonic()
        self.wanted = asyncio.Queue()

    async def ask(self, client, operation, fields=b""):
        self.request += 1
        await client.write_gatt_char(CONTROL, struct.pack("<HB", self.request, operation) + fields, response=True)

    def frame(self, _characteristic, data):
        epoch, seq = struct.unpack_from("<QI", data, 4)
        self.seen.append((epoch, seq))
        self.last = time.monotonic()
        if len(self.seen) % ACK_EVERY == 0:
            self.wanted.put_nowait((epoch, seq))

    async def drain(self):
        async with BleakClient(self.device, timeout=60) as client:
            await client.start_notify(CONTROL, lambda *_: None)
            await client.start_notify(BACKLOG, self.frame)
            began = self.last = time.monotonic()
            used = resource.getrusage(resource.RUSAGE_SELF)
            await self.ask(client, START_BACKLOG, bytes([WINDOW]))
            while time.monotonic() - self.last < QUIET_S:
                try:
                    epoch, seq = await asyncio.wait_for(self.wanted.get(), 0.5)
                except asyncio.TimeoutError:
                    if not self.seen:
                        continue
                    epoch, seq = self.seen[-1]
                await self.ask(client, ACK, struct.pack("<QI", epoch, seq))
            now = resource.getrusage(resource.RUSAGE_SELF)
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        pairs = list(zip(self.seen, self.seen[1:]))
        print(
            json.dumps(
                {
                    "received": len(set(self.seen)),
                    "reordered": sum(1 for one, next_one in pairs if next_one < one),
                    "cpu_percent": 100 * cpu / max(self.last - began, 0.001),
                    "rss_mib": now.ru_maxrss / 1024,
                }
            ),
            flush=True,
        )

    async def hold(self):
        while True:
            gone = asyncio.Event()
            try:
                async with BleakClient(self.device, disconnected_callback=lambda _: gone.set(), timeout=60) as client:
                    await client.start_notify(CONTROL, lambda *_: None)
                    await client.start_notify(STREAM, lambda *_: None)
                    await self.ask(client, STREAM_ON)
                    await gone.wait()
            except Exception as error:  # whatever bleak met: again
                print(f"again: {error!r}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.2)


peer = Peer(sys.argv[1], sys.argv[2])
asyncio.run(getattr(peer, sys.argv[3])())
