"""A Python client with bleak in the place of kinara-gatewayd: the same wearable, the same load, the same BlueZ.

usage: peer.py ADDRESS drain|hold     ADDRESS is a bonded device's identity. Prints one line of JSON and ends (drain), or
stays connected and subscribed for as long as it lives (hold)."""

import asyncio
import json
import resource
import struct
import sys
import time

from bleak import BleakClient
from bleak.backends.bluezdbus.manager import get_global_bluez_manager
from bleak.backends.device import BLEDevice

UUID = "6b6900%02x-4e61-5261-8b01-7a1c09d54f2e"
STREAM, BACKLOG, CONTROL = (UUID % number for number in (2, 3, 4))
# Operations of `control`, and a window as kinara-gatewayd's.
ACK, START_BACKLOG, STREAM_ON, WINDOW = 4, 6, 7, 100
# Acknowledged by so many; the backlog has ended when nothing came for so long.
ACK_EVERY, QUIET_S = 20, 4.0


class Peer:
    def __init__(self, address):
        self.address = address
        self.device = None
        self.request = 0
        self.seen = []
        self.last = time.monotonic()
        self.wanted = asyncio.Queue()

    async def find(self):
        """A bonded device keeps the D-Bus path of the address at which it was paired: it is found by what it is now."""
        devices = (await get_global_bluez_manager())._properties.items()
        for path, interfaces in devices:
            if interfaces.get("org.bluez.Device1", {}).get("Address") == self.address:
                self.device = BLEDevice(self.address, None, {"path": path, "props": {"Address": self.address}}, 0)
                return
        sys.exit(f"bluetoothd knows no {self.address}")

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
        try:
            async with BleakClient(self.device, timeout=60) as client:
                began, used, now = await self.drained(client)
        except EOFError:
            # dbus_fast's reader may end so while bleak disconnects; all that is measured has been measured by then.
            pass
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

    async def drained(self, client):
        """Takes the backlog; when it began, and what the process had used then and at the end."""
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
        return began, used, resource.getrusage(resource.RUSAGE_SELF)

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


async def main():
    peer = Peer(sys.argv[1])
    await peer.find()
    await getattr(peer, sys.argv[2])()


asyncio.run(main())
