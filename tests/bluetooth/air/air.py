"""The air of the bed: boxes (machines with BlueZ), wearables and other peers, in one process.

usage: air.py SOCKET      listens there for commands, one JSON object a line, each answered by one line.

A box is reached over the socket of its machine's serial port; a wearable connects to a TCP port of its own and
speaks H4. Whoever is connected to SOCKET also hears what happens: lines with an `event` and a time `at`
(CLOCK_MONOTONIC, seconds)."""

import asyncio
import json
import logging
import sys
import time

from bumble import core
from bumble.transport.common import PacketParser

import peers
from controllers import Air, BoxController, WearableController

# How often an attempt is made to reach a machine.
REACH_S = 0.1
PLUGGED_IN, PULLED_OUT = bytes([0xFF, 1]), bytes([0xFF, 0])


class Stream:
    """Where a controller's packets for its host go."""

    def __init__(self, writer):
        self.writer = writer
        self.ended = False

    def on_packet(self, packet):
        if not self.ended and not self.writer.is_closing():
            self.writer.write(packet)

    def end(self, last):
        """The last that the host hears."""
        self.ended = True
        self.writer.write(last)
        self.writer.write_eof()


async def carry(reader, controller):
    """Gives the controller what its host sends, until that ends."""
    parser = PacketParser(controller)
    while data := await reader.read(65536):
        try:
            parser.feed_data(data)
        except core.InvalidPacketError as error:
            logging.error("%s: %s", controller.name, error)


class Box:
    """A machine's controller, plugged in or pulled out."""

    def __init__(self, air, name, address, socket):
        self.controller = BoxController(name, air, address)
        self.air, self.socket = air, socket
        self.wanted = asyncio.Event()
        self.writer = None
        self.task = asyncio.ensure_future(self.run())

    async def run(self):
        while True:
            await self.wanted.wait()
            try:
                reader, self.writer = await asyncio.open_unix_connection(self.socket)
            except OSError:
                await asyncio.sleep(REACH_S)
                continue
            self.controller.forget()
            self.controller.host = Stream(self.writer)
            self.controller.on_air = True
            self.writer.write(PLUGGED_IN)
            self.air.tell(event="box", device=self.controller.name, up=True)
            try:
                await carry(reader, self.controller)
            except OSError:
                pass
            self.gone()

    def gone(self):
        self.controller.host = None
        self.controller.on_air = False
        self.air.cut(self.controller)
        self.controller.forget()
        if self.writer:
            self.writer.close()
            self.writer = None
        self.air.tell(event="box", device=self.controller.name, up=False)

    def plug(self, wanted):
        if wanted:
            self.wanted.set()
            return
        self.wanted.clear()
        if self.writer and not self.controller.host.ended:
            self.controller.host.end(PULLED_OUT)


class Wearable:
    """A wearable's controller; its host comes and goes by TCP."""

    def __init__(self, air, name):
        self.controller = WearableController(name, air)
        self.air = air
        self.writer = None

    async def listen(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        if self.writer:
            # The host that was here before is gone, or should be.
            self.writer.close()
        self.writer = writer
        self.controller.forget()
        self.controller.host = Stream(writer)
        try:
            await carry(reader, self.controller)
        except OSError:
            pass
        if self.writer is writer:
            self.writer = None
            self.controller.host = None
            self.air.cut(self.controller)
            self.controller.forget()
        writer.close()


class Town:
    """All that is there, by name, and the commands that change it."""

    def __init__(self):
        self.listeners = set()
        self.air = Air(self.tell)
        self.boxes, self.wearables, self.peers = {}, {}, {}
        self.phones = 0

    def tell(self, **event):
        line = json.dumps({**event, "at": time.monotonic()}).encode() + b"\n"
        for writer in self.listeners:
            writer.write(line)

    def controller(self, name):
        for kind in (self.boxes, self.wearables, self.peers):
            if name in kind:
                return kind[name].controller
        raise KeyError(f"nobody is called {name}")

    async def do_box(self, name, address, socket):
        """A new box, or another machine in the place of an earlier one."""
        if name in self.boxes:
            self.boxes[name].socket = socket
        else:
            self.boxes[name] = Box(self.air, name, address, socket)
        self.boxes[name].plug(True)

    async def do_plug(self, name, on):
        self.boxes[name].plug(on)

    async def do_slots(self, name, slots):
        self.boxes[name].controller.slots = slots

    async def do_wearable(self, name):
        wearable = self.wearables[name] = Wearable(self.air, name)
        return {"port": await wearable.listen()}

    async def do_range(self, device, box, rssi):
        self.air.set_range(self.controller(device), self.controller(box), rssi)

    async def do_cut(self, device):
        self.air.cut(self.controller(device))

    async def do_rotate(self, device):
        self.controller(device).rotate()

    async def do_heart_rate(self, name):
        self.peers[name] = peers.HeartRateSensor(self.air, name, len(self.peers))
        await self.peers[name].start()

    async def do_impostor(self, name, copies, kind, passkey):
        copied = self.controller(copies)
        self.peers[name] = peers.impostor(self.air, name, len(self.peers), copied, kind, passkey)
        await self.peers[name].start()

    async def do_phone(self, name, visits, passkey, patience):
        """Told at once; what the phone got comes as an event, for a temperature takes a while."""
        self.send_phone("phone", name, visits, lambda phone, address: phone.visit(address, passkey, patience))

    async def do_stranger(self, name, visits, patience):
        """Somebody connects who has no bond; the event has the reason for which the link went."""
        self.send_phone("stranger", name, visits, lambda phone, address: phone.knock(address, patience))

    async def do_collector(self, name, visits, passkey, patience, seconds):
        """Somebody pairs with a wearable and takes its frames for a while, which the event has."""
        self.send_phone(
            "collector", name, visits, lambda phone, address: phone.collect(address, passkey, patience, seconds)
        )

    def send_phone(self, event, name, visits, errand):
        self.phones += 1
        phone = self.peers[name] = peers.Phone(self.air, name, self.phones)
        address = str(self.controller(visits).le_legacy_advertiser.address).split("/")[0]

        async def go():
            try:
                got = await errand(phone, address)
            except Exception as error:  # told to whoever waits
                logging.exception("the %s", event)
                got = {"error": f"{type(error).__name__}: {error}"}
            await self.do_remove(name)
            self.tell(event=event, device=name, got=got)

        self.errand = asyncio.ensure_future(go())

    async def do_remove(self, name):
        peer = self.peers.pop(name)
        self.air.cut(peer.controller)
        peer.controller.forget()
        self.air.remove_controller(peer.controller)

    async def do_notified(self, device):
        """The notifications of a device since this was asked last: when, of which attribute, a digest of what."""
        return {"notified": self.air.notified.pop(device, [])}

    async def do_status(self):
        def told(controller):
            advertiser = controller.le_legacy_advertiser
            return {
                "links": [
                    getattr(self.air.peer_of(connection), "name", None)
                    for connection in controller.le_connections.values()
                ],
                "advertising": advertiser.enabled,
                "address": str(advertiser.address),
                "scanning": controller.le_scan_enable,
                "data": bytes(advertiser.advertising_data).hex(),
                "response": bytes(advertiser.scan_response_data).hex(),
                "refused": getattr(controller, "refused", 0),
            }

        return {controller.name: told(controller) for controller in self.air.controllers}

    async def serve(self, reader, writer):
        self.listeners.add(writer)
        try:
            while line := await reader.readline():
                try:
                    command = json.loads(line)
                    done = await getattr(self, "do_" + command.pop("do"))(**command)
                    answer = {"ok": done or {}}
                except Exception as error:  # told to whoever asked; the air goes on
                    logging.exception("%s", line)
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass
        self.listeners.discard(writer)
        writer.close()


async def main():
    town = Town()
    server = await asyncio.start_unix_server(town.serve, sys.argv[1])
    await server.serve_forever()


logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
asyncio.run(main())
